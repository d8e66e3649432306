"""The file system that a path is on, and what is known of its kind."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mhimdist.doctor.findings import Area, Finding

MOUNTS = Path("/proc/self/mountinfo")

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "cifs", "smb3", "glusterfs", "afs")
_SHARED_FUSE = ("fuse.glusterfs", "fuse.juicefs", "fuse.cvmfs2", "wekafs", "panfs", "orangefs", "pvfs2")
_OBJECT_STORES = re.compile(r"fuse\.(s3fs|goofys|gcsfuse|blobfuse2?|mount-s3|mountpoint-s3|rclone|s3ql)")


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Attributes:
        point: the folder where it is mounted.
        kind: its type, such as ext4 or nfs4.
        source: the device or server.
        options: its mount options, those of the file system itself included.
    """

    point: Path
    kind: str
    source: str
    options: frozenset[str]

    @property
    def is_shared(self) -> bool:
        """Whether several machines can see it."""
        return self.kind in (*_SHARED, *_SHARED_FUSE) or bool(_OBJECT_STORES.match(self.kind))


def mount_of(path: Path, mounts: Path = MOUNTS) -> Mount:
    """The mount that an existing path is on.

    Args:
        path: the path.
        mounts: the kernel's list of mounts.

    Raises:
        OSError: the path or the list cannot be read.
    """
    real = path.resolve(strict=True)
    found = Mount(Path("/"), "unknown", "unknown", frozenset())
    for mount in _listed(mounts.read_text(encoding="utf-8", errors="surrogateescape")):
        # A later mount covers an earlier one at the same place.
        if real.is_relative_to(mount.point) and len(mount.point.parts) >= len(found.point.parts):
            found = mount
    return found


def _listed(text: str) -> Iterator[Mount]:
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, source, more, *_) = before.split(" "), [*after.split(" "), "", "", ""]
        options = frozenset([*fields[5].split(","), *more.split(",")])
        yield Mount(Path(_plain(fields[4])), kind, _plain(source), options)


def _plain(field: str) -> str:
    """A field without the octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def finding_of(area: Area, mount: Mount, what: str, *, for_nodes: bool) -> Finding:
    """What the kind of a file system means for a folder of results.

    Args:
        area: area of the finding.
        mount: the mount.
        what: the folder, for messages.
        for_nodes: whether the nodes of a cluster shall see the folder.
    """
    subject, found = "file system", f"{what} is on {mount.kind}, mounted at {mount.point}"
    move = "set MHIMDIST_HOME to a folder on a disk: `export MHIMDIST_HOME=/path/on/a/disk`"
    if mount.kind in _IN_MEMORY:
        return area.warning(subject, f"{found}: it is memory, and a reboot loses it", move)
    if _OBJECT_STORES.match(mount.kind):
        return area.mend(
            subject,
            f"{found}: object stores have neither locks nor renames",
            f"{move}, and read the data by their URL",
        )
    if mount.kind.startswith("nfs") and (bad := _local_locks(mount.options)):
        return area.mend(
            subject,
            f"{found} with {bad}: locks exclude no other node",
            f"mount it without that option: `mount -o remount,local_lock=none {mount.point}`",
        )
    if mount.kind == "lustre" and "flock" not in mount.options:
        return area.mend(
            subject,
            f"{found} without the option flock: locks exclude no other node",
            f"mount it with that option: `mount -o remount,flock {mount.point}`",
        )
    if mount.kind in ("overlay", "aufs"):
        return area.warning(
            subject,
            f"{found}: it is a layer of this container, and ends with it",
            "mount a volume, and set MHIMDIST_HOME to it: `docker run --volume /srv/mhimdist:/mhimdist "
            "--env MHIMDIST_HOME=/mhimdist`",
        )
    if for_nodes and not mount.is_shared:
        return area.warning(
            subject,
            f"{found}, which the other nodes of the cluster do not see",
            "set MHIMDIST_HOME on every node to a folder that all of them see: "
            "`export MHIMDIST_HOME=/shared/mhimdist`",
        )
    return area.fine(subject, found + (", which several machines can see" if mount.is_shared else ""))


def _local_locks(options: frozenset[str]) -> str:
    return ", ".join(sorted(options & {"nolock", "local_lock=all", "local_lock=flock", "local_lock=posix"}))


def nearest(folder: Path) -> Path:
    """A folder itself, or the nearest one above it that exists."""
    return next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))
