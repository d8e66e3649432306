"""The doctor as a command: `python -m mhimdist.doctor --help`."""

from mhimdist.doctor.options import Doctor
from mhimdist.doctor.run import run_doctor
from mhimdist.process import run


def main() -> None:
    """Look at this machine.

    Raises:
        UnfitError: something must be mended.
    """
    run_doctor(Doctor.from_command_line())


if __name__ == "__main__":
    run(main)
