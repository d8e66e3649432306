"""The process of one part, which the driver starts: `python -m benchmarks.gpu_check.part MODULE ...`.

A process for each part, because an error of CUDA spoils the process in which it happens.
"""

import argparse
import importlib
import sys
import traceback
from pathlib import Path

from benchmarks.gpu_check.notes import REQUIRED, Notes
from benchmarks.gpu_check.setting import Setting


def main() -> int:
    """Run the part; the exit status is 1 if it ended early."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--limit-s", type=float, required=True)
    parser.add_argument("--argument", default="")
    options = parser.parse_args()
    required = REQUIRED | ({"triton"} if options.device == "cuda" else set())
    notes = Notes(options.notes, frozenset(required))
    try:
        if options.device == "cuda":
            _require_cuda()
        part = importlib.import_module(options.module)
        part.check(notes, Setting(options.device, options.limit_s, options.argument))
    except ModuleNotFoundError as error:
        traceback.print_exc()
        notes.missing("part", error)
    except Exception as error:
        traceback.print_exc()
        notes.fail("part", f"{type(error).__name__}: {error}")
        return 1
    return 0


def _require_cuda() -> None:
    """Raise a `RuntimeError` that says what to do if PyTorch finds no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            f"expected a CUDA device, and PyTorch {torch.__version__} finds none; give --device cpu "
            "to try the check itself on a CPU"
        )


if __name__ == "__main__":
    sys.exit(main())
