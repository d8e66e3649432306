"""Torch, the driver, the GPUs and DALI: whether they belong together."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mhimdist.cluster import mps
from mhimdist.doctor import packages
from mhimdist.doctor.child import NoAnswerError, ask, asked
from mhimdist.doctor.findings import Area, Finding, size
from mhimdist.doctor.options import Doctor

AREA = Area("gpu")

PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAYS = "0x10de", ("0x0300", "0x0302")
_LEAST_FREE_BYTES = 2**30
_INSTALL_TORCH = "python -m pip install torch --index-url https://download.pytorch.org/whl/{}"


def torch_and_driver(job: Doctor) -> Iterator[Finding]:
    """The build of torch, the driver, and each GPU."""
    again = "install it again: `python -m pip install --force-reinstall torch`"
    broken = AREA.mend("torch", "torch cannot be imported", again)
    torch = yield from asked(job, "torch_build", silent=broken)
    if torch is None:
        return
    named = packages.installed("torch")
    if named is not None and torch["version"].partition("+")[0] != named.partition("+")[0]:
        yield AREA.mend(
            "torch",
            f"torch says that it is {torch['version']}, its installation that it is {named}: two are mixed",
            "install one again: `python -m pip install --force-reinstall torch`",
        )
    else:
        build = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU"
        yield AREA.fine("torch", f"{torch['version']}, a {build} build")
    yield from driver_findings(torch, _driver(job), _cards())
    for number, gpu in enumerate(torch["gpus"]):
        yield from gpu_findings(number, gpu, torch["architectures"])
    if torch["gpus"]:
        yield from _mps(job)


def _driver(job: Doctor) -> dict[str, Any]:
    try:
        return ask("driver", timeout_s=job.timeout_s)
    except NoAnswerError as error:
        return {"cuda": None, "error": str(error)}


def _cards() -> int:
    """The NVIDIA GPUs that the machine has, whether or not a driver knows them."""
    found = 0
    for device in PCI.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        found += vendor == _NVIDIA and kind.startswith(_DISPLAYS)
    return found


def driver_findings(torch: dict[str, Any], driver: dict[str, Any], cards: int) -> Iterator[Finding]:
    """Whether the driver can run this build of torch.

    Args:
        torch, driver: the answers of `probes.torch_build` and `probes.driver`.
        cards: number of NVIDIA GPUs of the machine.
    """
    if driver["cuda"] is None:
        if cards:
            yield AREA.mend(
                "driver",
                f"the machine has {cards} NVIDIA GPUs and no driver that answers: {driver['error']}",
                "install NVIDIA's driver, and in a container start it with the GPUs: `docker run --gpus all`",
            )
        elif torch["cuda"]:
            yield AREA.warning(
                "driver",
                "no NVIDIA GPU and no driver, so training uses the CPU",
                "if this machine shall have a GPU, start the container with it: `docker run --gpus all`",
            )
        else:
            yield AREA.fine("driver", "no NVIDIA GPU: training uses the CPU")
        return
    knows = f"{driver['cuda'] // 1000}.{driver['cuda'] % 1000 // 10}"
    if not torch["cuda"]:
        build = f"cu{driver['cuda'] // 1000}{driver['cuda'] % 1000 // 10}"
        yield AREA.mend(
            "driver",
            f"the driver knows CUDA {knows}, but this torch is a CPU build",
            f"install a CUDA build: `{_INSTALL_TORCH.format(build)}`",
        )
    elif int(torch["cuda"].split(".")[0]) > driver["cuda"] // 1000:
        yield AREA.mend(
            "driver",
            f"this torch is built for CUDA {torch['cuda']}, and the driver knows only CUDA {knows}",
            f"update the driver, or install a torch for CUDA {driver['cuda'] // 1000}: "
            f"`{_INSTALL_TORCH.format('cu126' if driver['cuda'] // 1000 == 12 else 'cpu')}`",
        )
    elif not torch["gpus"]:
        yield AREA.mend(
            "driver",
            f"the driver knows CUDA {knows}, but torch sees no GPU: {torch['error'] or 'no reason given'}",
            "see whether the GPUs are well with `nvidia-smi`, and whether CUDA_VISIBLE_DEVICES hides them",
        )
    else:
        yield AREA.fine("driver", f"it knows CUDA {knows}, torch {torch['cuda']}: they match")


def gpu_findings(number: int, gpu: dict[str, Any], architectures: list[str]) -> Iterator[Finding]:
    """Whether this torch has code for a GPU, and whether the GPU has memory left.

    Args:
        number: of the GPU.
        gpu: name, capability, free and total bytes.
        architectures: what torch has code for, such as sm_90.
    """
    subject = f"GPU {number}"
    major, minor = gpu["capability"]
    # Code for 8.0 runs on 8.6; code for a later minor version, or for another major one, does not.
    known = [name.removeprefix("sm_").rstrip("af") for name in architectures if name.startswith("sm_")]
    runs = any(int(each[:-1]) == major and int(each[-1]) <= minor for each in known)
    memory = f"{size(gpu['free'])} of {size(gpu['total'])} free"
    if known and not runs:
        yield AREA.mend(
            subject,
            f"{gpu['name']} has capability {major}.{minor}, and torch has code for {', '.join(known)}",
            f"install a build that knows it: `{_INSTALL_TORCH.format('cu126')}`",
        )
    elif gpu["free"] < max(_LEAST_FREE_BYTES, gpu["total"] // 10):
        yield AREA.warning(
            subject,
            f"{gpu['name']}: {memory}, so other processes hold most of it",
            "see which: `nvidia-smi`; choose another GPU by `CUDA_VISIBLE_DEVICES=1`",
        )
    else:
        yield AREA.fine(subject, f"{gpu['name']}: {memory}")


def _mps(job: Doctor) -> Iterator[Finding]:
    if mps.is_running():
        yield AREA.fine("MPS", "its daemon runs: runs compute on one GPU at the same time")
    elif job.gpus_per_run is None or job.gpus_per_run < 1:
        yield AREA.warning(
            "MPS",
            "its daemon does not run: runs that share a GPU take turns",
            f"start it on this node before Ray: `{mps.START}`",
        )
    else:
        yield AREA.fine("MPS", "its daemon does not run, and no two runs share a GPU")


def dali(job: Doctor) -> Iterator[Finding]:
    """Whether DALI loads, and belongs to the CUDA of torch."""
    names = {packages.normal(each.name): each.version for each in metadata.distributions() if each.name}
    builds = sorted(name for name in names if name.startswith("nvidia-dali-cuda"))
    if not builds:
        return  # the required packages say it
    found = f"{builds[0]} {names[builds[0]]}"
    if len(builds) > 1:
        yield AREA.warning(
            "DALI",
            f"several are installed: {', '.join(builds)}",
            f"keep one: `python -m pip uninstall {' '.join(builds[:-1])}`",
        )
        return
    broken = AREA.warning(
        "DALI",
        f"{found} cannot be imported, so loading.reader=dali fails",
        f"install it again: `python -m pip install --force-reinstall {builds[0]}`, or keep mmap",
    )
    answer = yield from asked(job, "dali", silent=broken)
    if answer is None:
        return
    build = builds[0].removeprefix("nvidia-dali-cuda")
    if (cuda := answer["torch_cuda"]) and not build.startswith(cuda.split(".")[0]):
        yield AREA.warning(
            "DALI",
            f"{found} is for another CUDA than torch, {cuda}",
            f"install its pair: `python -m pip install nvidia-dali-cuda{cuda.split('.')[0]}0`",
        )
    else:
        yield AREA.fine("DALI", f"{found}, imported")
