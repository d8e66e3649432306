"""The control groups (versions 1 and 2) around this process: what a container or a batch job may take."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def groups(controller: str, *, root: Path = ROOT, own: Path = OWN) -> Iterator[tuple[int, Path]]:
    """The folders of the groups that may limit this process, innermost first; not all of them need exist.

    Args:
        controller: name of the controller, such as memory.
        root: where the groups are mounted.
        own: the file that names the groups of this process.

    Yields:
        The version, 1 or 2, and the folder of a group.
    """
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                version, top = 2, root
            elif controller in controllers.split(","):
                version, top = 1, root / controller
            else:
                continue
            # In a container the path may be the host's, while the container's group is at the root.
            folder = top / path.lstrip("/")
            for group in (folder, *folder.parents[: len(folder.parts) - len(top.parts)]):
                yield version, group


def least(controller: str, names: tuple[str, str], *, root: Path = ROOT, own: Path = OWN) -> int | None:
    """The smallest limit of all groups; None if there is none.

    Args:
        controller: name of the controller.
        names: the file with the limit in version 1 and in version 2; "max" and what exceeds 2^60 is no limit.
        root, own: see `groups`.
    """
    limits = []
    for version, group in groups(controller, root=root, own=own):
        with suppress(OSError, ValueError):
            limits.append(int((group / names[version - 1]).read_text()))
    return min((limit for limit in limits if 0 <= limit < 2**60), default=None)


def cpus(*, root: Path = ROOT, own: Path = OWN) -> float | None:
    """The smallest quota in CPU cores; None if there is none.

    Args:
        root, own: see `groups`.
    """
    quotas = []
    for version, group in groups("cpu", root=root, own=own):
        with suppress(OSError, ValueError):
            if version == 2:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
                quota, period = ((group / name).read_text() for name in names)
            if int(quota) > 0:  # -1 and "max" are none
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)
