"""What a process of its own looks at: `python -m mhimdist.doctor.probes QUESTION`; see `child.ask`."""

import ctypes
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from mhimdist.errors import MhimdistError


def torch_build() -> dict[str, Any]:
    """The build of torch, and the GPUs that it sees."""
    import torch

    told: dict[str, Any] = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "architectures": torch.cuda.get_arch_list(),
        "gpus": [],
        "error": None,
    }
    if torch.version.cuda is None:
        return told
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            for number in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(number)
                told["gpus"].append(
                    {
                        "name": torch.cuda.get_device_name(number),
                        "capability": torch.cuda.get_device_capability(number),
                        "free": free,
                        "total": total,
                    }
                )
        except Exception as error:  # torch raises RuntimeError, AssertionError and its own AcceleratorError
            told["error"] = str(error).splitlines()[0]
    told["error"] = told["error"] or next((str(each.message).splitlines()[0] for each in said), None)
    return told


def driver() -> dict[str, Any]:
    """The newest CUDA that the driver knows, as 1000 x major + 10 x minor; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"cuda": None, "error": str(error)}
    version = ctypes.c_int()
    if status := library.cuDriverGetVersion(ctypes.byref(version)):
        return {"cuda": None, "error": f"cuDriverGetVersion returned {status}"}
    return {"cuda": version.value or None, "error": "it knows no CUDA"}


def dali() -> dict[str, Any]:
    """Whether DALI loads beside torch."""
    import nvidia.dali
    import torch

    return {"version": nvidia.dali.__version__, "torch_cuda": torch.version.cuda}


def added() -> dict[str, Any]:
    """What other packages add, and why some of it is refused."""
    from mhimdist.config import extensions
    from mhimdist.config.models import EXTENSIONS
    from mhimdist.doctor.shards import added_readers
    from mhimdist.search.tracker import TRACKERS, tracker_fault

    readers = added_readers()
    trackers = extensions.load(extensions.TRACKERS, taken=TRACKERS, fault=tracker_fault)
    return {
        "models": sorted(EXTENSIONS.loaded),
        "readers": sorted(readers.readers),
        "trackers": sorted(trackers.loaded),
        "refused": [*EXTENSIONS.refused.values(), *readers.refused.values(), *trackers.refused.values()],
    }


def ray_access() -> dict[str, Any]:
    """Whether Ray's workers can start, and Ray asks for its token, in this environment."""
    from mhimdist.cluster.authentication import require_token_mode
    from mhimdist.cluster.connect import require_address_space

    require_address_space()
    require_token_mode()
    return {}


def nodes(insecure: str) -> dict[str, Any]:
    """Join the cluster at RAY_ADDRESS, and list its nodes.

    Args:
        insecure: "yes" to join a cluster that asks for no token.
    """
    from mhimdist.cluster.connect import Nodes, connect, refuse_open_cluster

    refuse_open_cluster(insecure=insecure == "yes")
    connect()
    found = Nodes().look()
    return {
        "nodes": [
            {"cpus": node.cpus, "gpus": node.gpus, "memory_bytes": node.memory_bytes, "is_up": node.is_up}
            for node in found
        ]
    }


def hold(lock: str) -> dict[str, Any]:
    """Take the two locks of a file, say so, and hold them until this process is killed.

    Args:
        lock: path of the file.
    """
    import fcntl
    import time
    from pathlib import Path

    from mhimdist.files import Lock

    whole = Lock(Path(lock))
    whole.acquire(wait_s=0)
    with open(f"{lock}.posix", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _answer({"held": whole.is_held})
        time.sleep(600)
    return {}


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    each.__name__: each for each in (torch_build, driver, dali, added, ray_access, nodes, hold)
}


def _answer(answer: Mapping[str, Any]) -> None:
    """Write a line of JSON, which `child.py` reads; no person sees it."""
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def main() -> None:
    """Answer with one line of JSON, the last one of the output; a refusal is an answer, too."""
    name, *arguments = sys.argv[1:]
    try:
        answer = QUESTIONS[name](*arguments)
    except MhimdistError as error:
        answer = {"refused": " ".join(str(error).split())}
    sys.stdout.write("\n")  # a library may have left a line unfinished
    _answer(answer)
    os._exit(0)  # the exit functions of Ray wait for a cluster that may be gone


if __name__ == "__main__":
    main()
