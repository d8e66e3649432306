"""NVIDIA MPS, which lets processes compute on one GPU at the same time; without it they take turns.

Nothing here starts or stops it: that is up to whoever owns the node. No Ray here.
"""

import os
from pathlib import Path

import psutil

START = "nvidia-cuda-mps-control -d"
STOP = "echo quit | nvidia-cuda-mps-control"


def is_running() -> bool:
    """Whether MPS's control daemon runs on this node, where CUDA looks for it; only files are looked at.

    A daemon outside this process's container, whose process cannot be seen from here, counts as not running.
    """
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    try:
        if not (pipes / "control").exists():
            return False
        daemon = int((pipes / "nvidia-cuda-mps-control.pid").read_text())
    except FileNotFoundError:
        return True  # not every driver leaves a file with its process
    except (OSError, ValueError):
        return False
    return psutil.pid_exists(daemon)  # a daemon that was killed leaves its files
