"""The environment of a run: packages, device, commit."""

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

import mhimdist
from mhimdist.config.models import EXTENSIONS


def environment(num_threads: int) -> dict[str, str]:
    """The environment of a trial, for a file in its folder."""
    packages = ("torch", "ray", "optuna", "numpy")
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": str(num_threads),
        "mhimdist": mhimdist.__version__,
        "revision": revision(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "CUDA of torch": torch.version.cuda or "none",
    }


def versions(model: str | None = None) -> dict[str, str]:
    """The versions of the packages that a network's weights depend on.

    Args:
        model: name of its model, which another package may have added.
    """
    packages = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "safetensors")}
    packages |= dict([EXTENSIONS.packages[model]]) if model in EXTENSIONS.packages else {}
    return {"mhimdist": mhimdist.__version__, "python": platform.python_version(), **packages}


@cache
def revision() -> str:
    """The commit of this package from `git describe`; "unknown" outside a checkout, as in a job's upload."""
    folder = Path(__file__).parent
    try:
        # A checkout that merely contains an installed copy of this package must not lend its commit.
        for command in (
            ("ls-files", "--error-unmatch", "__init__.py"),
            ("describe", "--always", "--dirty", "--abbrev=12"),
        ):
            said = subprocess.run(
                ["git", "-C", folder, *command], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()
