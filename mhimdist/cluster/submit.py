"""Submit a job script to Ray: `python -m mhimdist.cluster.submit jobs/tune_c16.py --data /shared/shards`.

It runs `ray job submit --working-dir . -- python jobs/tune_c16.py ...` after a check of the upload's size:
Ray takes 100 MiB at most, and refuses more only after it has packed and sent them.
"""

import logging
import os
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import create_package

from mhimdist.cluster.authentication import keep_token_private
from mhimdist.cluster.connect import refuse_open_cluster
from mhimdist.cluster.options import Submit
from mhimdist.errors import SubmitError
from mhimdist.foreign_text import say
from mhimdist.process import run

NAMED = 5
"""How many of the largest files and folders an error names."""


@dataclass(frozen=True)
class Upload:
    """The package of files that is sent with a job.

    Attributes:
        num_files: files of the working directory that no ignore file excludes.
        num_bytes: size of the package in bytes.
        largest: the largest files, each with its size in bytes.
        folders: the largest folders, each with the number and the total size of its files in bytes; a folder
            within another is listed if it has most of the other's bytes, which is then left out.
    """

    num_files: int
    num_bytes: int
    largest: tuple[tuple[str, int], ...]
    folders: tuple[tuple[str, int, int], ...]


def measure(working_dir: Path) -> Upload:
    """Pack a directory as Ray would, by its `.gitignore` and `.rayignore`, and discard the package."""
    quiet = logging.getLogger(f"{__name__}.ray")
    quiet.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.zip"
        create_package(str(working_dir), package, include_gitignore=True, logger=quiet)
        with zipfile.ZipFile(package) as archive:
            files = [entry for entry in archive.infolist() if not entry.is_dir()]
        files.sort(key=lambda entry: entry.file_size, reverse=True)
        return Upload(
            num_files=len(files),
            num_bytes=package.stat().st_size,
            largest=tuple((entry.filename, entry.file_size) for entry in files[:NAMED]),
            folders=_largest_folders([(entry.filename, entry.file_size) for entry in files]),
        )


def _largest_folders(files: Sequence[tuple[str, int]]) -> tuple[tuple[str, int, int], ...]:
    """The largest folders with the number and size of their files; see `Upload.folders`."""
    count: Counter[PurePosixPath] = Counter()
    size: Counter[PurePosixPath] = Counter()
    for name, num_bytes in files:
        for folder in list(PurePosixPath(name).parents)[:-1]:  # the last one is the working directory
            count[folder] += 1
            size[folder] += num_bytes
    left_out = {folder.parent for folder in size if 2 * size[folder] > size[folder.parent]}
    named = [folder for folder, _ in size.most_common() if folder not in left_out]
    return tuple((f"{folder}/", count[folder], size[folder]) for folder in named[:NAMED])


def check(working_dir: Path, *, limit_bytes: int = DASHBOARD_CLIENT_MAX_SIZE) -> Upload:
    """The upload of a directory, if Ray takes it.

    Raises:
        SubmitError: the package is larger than Ray takes; the error names the largest folders and files.
    """
    upload = measure(working_dir)
    if upload.num_bytes > limit_bytes:
        files = ", ".join(f"{name} ({_mib(size)})" for name, size in upload.largest)
        folders = ", ".join(f"{name} ({_mib(size)} in {num})" for name, num, size in upload.folders)
        raise SubmitError(
            f"{working_dir} is {_mib(upload.num_bytes)} in {upload.num_files} files, but Ray takes "
            f"{_mib(limit_bytes)} at most; the largest folders are {folders or 'none'}; the largest files "
            f"are {files}. Keep data and runs on storage that the cluster sees, and list what to leave out "
            "in .rayignore"
        )
    return upload


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


def submit_job(given: Submit, *, commands: Collection[str] = ()) -> None:
    """Check the upload, then become `ray job submit`.

    Args:
        given: what to submit.
        commands: commands of `mhimdist` that can stand in the place of a script.

    Raises:
        SubmitError: the script is missing, or the upload is too large.
        ClusterError: the environment turns Ray's authentication off.
    """
    refuse_open_cluster(insecure=given.insecure)
    working_dir = given.working_dir.resolve()
    script = ["python", given.job]
    if not (working_dir / given.job).is_file():
        if given.job not in commands:
            raise SubmitError(f"{working_dir} has no {given.job}; give a script in the working directory")
        script = ["python", "-m", "mhimdist", given.job]
    upload = check(working_dir)
    say(f"{upload.num_files} files, {_mib(upload.num_bytes)} to upload from {working_dir}")
    if given.check:
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    keep_token_private()
    command = ["job", "submit", "--address", given.address, "--working-dir", str(working_dir)]
    ray = str(Path(sys.executable).parent / "ray")
    os.execv(ray, [ray, *command, "--", *script, *given.rest])


def main() -> None:
    """Command line: see `submit_job`."""
    submit_job(Submit.from_command_line())


if __name__ == "__main__":
    run(main)
