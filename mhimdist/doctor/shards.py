"""The shards of a data set: every byte is read and compared with the manifest."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mhimdist.doctor.findings import Area, Finding, one_of, size
from mhimdist.doctor.machine import SHARED_MEMORY
from mhimdist.doctor.options import Doctor
from mhimdist.errors import DataError

AREA = Area("data")


def shards(job: Doctor) -> Iterator[Finding]:
    """Whether all shards are readable and as they were written."""
    if job.data is None:
        return
    from mhimdist.data.remote import is_remote, shown

    if is_remote(job.data):
        yield from _remote(job.data, shown(job.data))
        return
    folder = Path(job.data).expanduser()
    if not folder.is_dir() and (job.home / "data" / job.data).is_dir():
        folder = job.home / "data" / job.data
    if not folder.is_dir():
        yield AREA.mend(
            "shards",
            f"there is no folder {folder}, nor {job.home / 'data' / job.data}",
            "make an embedded data set by `python -m data_prep.digits digits-c16`, or your own by "
            "`python -m data_prep.shard`",
        )
        return
    yield from _local(folder)


def _local(folder: Path) -> Iterator[Finding]:
    """Compare a folder's files with its manifest; `data_prep` knows how."""
    from data_prep.checks.faults import verify
    from data_prep.writing.progress import Count, bar
    from mhimdist.data.manifest import Manifest

    mend = f"see all by `python -m data_prep.verify {folder}`, and rewrite them: add `--repair FEATURES`"
    try:
        manifest, counted = Manifest.read(folder), Count()
        num_bytes = sum(shard.bytes for shard in manifest.info.shards)
        with bar(num_bytes, lambda: counted.total, "reading the shards"):
            faults = verify(folder, workers=min(4, os.cpu_count() or 1), on_bytes=counted.add)
    except (DataError, OSError) as error:
        yield AREA.mend("shards", f"{error}", mend)
        return
    if faults:
        yield AREA.mend("shards", f"{folder}: {one_of([str(fault) for fault in faults], 2)}", mend)
        return
    yield AREA.fine("shards", f"{folder}: {_told(manifest, num_bytes)}, every byte as written")
    yield cache_finding(num_bytes)


def _remote(url: str, name: str) -> Iterator[Finding]:
    """Fetch every shard of a remote folder, keep none, and compare its length and hash."""
    from data_prep.writing.progress import Count, bar
    from mhimdist.data.remote import RemoteFolder
    from mhimdist.data.shards import remote_manifest

    try:
        source = RemoteFolder(url)
        manifest, counted, faults = remote_manifest(source), Count(), []
        num_bytes = sum(shard.bytes for shard in manifest.info.shards)
        with bar(num_bytes, lambda: counted.total, "reading the shards"):
            for shard in manifest.info.shards:
                content = hashlib.sha256()
                for chunk in source.stream(shard.name):
                    content.update(chunk)
                    counted.add(len(chunk))
                if content.hexdigest() != shard.sha256:
                    faults.append(f"{shard.name} has sha256 {content.hexdigest()}, expected {shard.sha256}")
    except (DataError, OSError) as error:
        yield AREA.mend(
            "shards",
            f"{name}: {error}",
            "see whether the URL and your credentials are right: `curl --head URL`, `aws s3 ls URL`, "
            "`gcloud storage ls URL`",
        )
        return
    if faults:
        yield AREA.mend(
            "shards",
            f"{name}: {one_of(faults, 2)}",
            "copy them there again from a folder that is whole: `python -m data_prep.verify FOLDER`",
        )
        return
    yield AREA.fine("shards", f"{name}: {_told(manifest, num_bytes)}, every byte as written")
    yield cache_finding(num_bytes)


def added_readers() -> Any:
    """The readers of features that other packages add."""
    from data_prep.readers.sources import others

    return others()


def _told(manifest: Any, num_bytes: int) -> str:
    return f"{len(manifest.rows)} bags, {size(num_bytes)} (shards: {len(manifest.info.shards)})"


def cache_finding(num_bytes: int) -> Finding:
    """Whether a copy of the data fits into shared memory, as loading.cache=ram makes it.

    Args:
        num_bytes: bytes of the shards.
    """
    disk = os.statvfs(SHARED_MEMORY)
    free = disk.f_bavail * disk.f_frsize
    found = f"{size(free)} of {SHARED_MEMORY} are free, and the data have {size(num_bytes)}"
    if num_bytes < free:
        return AREA.fine("memory cache", f"{found}: loading.cache=ram fits if they are kept as stored")
    return AREA.fine("memory cache", f"{found}: keep loading.cache=none, which reads from the shards")
