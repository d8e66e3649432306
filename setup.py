"""What pyproject.toml cannot say: the tested versions go into the wheel, where the doctor reads them."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConstraints(build_py):
    """Copies constraints.txt beside the doctor; an editable install finds it in the checkout."""

    def run(self) -> None:
        """Build the packages, then copy."""
        super().run()
        if not self.editable_mode:
            self.copy_file("constraints.txt", f"{self.build_lib}/mhimdist/doctor/constraints.txt")


setup(cmdclass={"build_py": BuildWithConstraints})
