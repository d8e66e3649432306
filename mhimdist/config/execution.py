"""What a job says of every run: where it reads and writes, and what of a cluster it takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from mhimdist import files
from mhimdist.config.options import Options
from mhimdist.errors import RunLockedError
from mhimdist.files import home


@dataclass(frozen=True)
class Saving:
    """When checkpoints are made and which are kept; it changes nothing of what is trained.

    Attributes:
        keep_last: the newest ones to keep, at least 1.
        keep_best: of the ends of epochs, those of highest validation AUC to keep.
        every_s: seconds between checkpoints within an epoch; None saves at the ends of epochs only.
    """

    keep_last: int = 2
    keep_best: int = 1
    every_s: float | None = None


class Execution(Options):
    """Where runs read and write, and what of a cluster each of them takes."""

    home: Path = Field(
        default_factory=home,
        description="folder of data/, runs/ and cache/, on storage that every node sees "
        "(default: MHIMDIST_HOME, else ~/mhimdist)",
    )
    name: str = Field(
        "cross_validation", description="of the results' folder under runs/", pattern=r"^[\w.-]+$"
    )
    data: str = Field(
        "digits-c16",
        description="an embedded data set's name, a folder of shards, or its URL (s3, gs, https, ...)",
    )
    cpus_per_run: float = Field(1.0, gt=0, description="CPU cores, and compute threads, of a run")
    gpus_per_run: float | None = Field(
        None, ge=0, description="share of a GPU of a run; by default a quarter where the cluster has GPUs"
    )
    workers: int = Field(
        1,
        ge=1,
        description="processes that train one run together, each with cpus-per-run cores and, where the "
        "cluster has GPUs, one of them; runs then follow each other. A step is of train.bags-per-step bags "
        "whatever their number",
    )
    min_workers: int | None = Field(
        None, ge=1, description="go on with so few when the cluster shrinks; none: wait for all"
    )
    max_failures: int = Field(3, ge=0, description="how often lost workers are started again, for a run")
    worker_timeout_s: float = Field(
        300.0, gt=0, description="how long a worker that does not answer is waited for before it is named"
    )
    save_every_s: float | None = Field(60.0, ge=0, description="seconds between checkpoints within an epoch")
    insecure: bool = Field(
        False,
        description="use Ray even where RAY_AUTH_MODE=disabled lets everybody in who reaches the cluster",
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints to keep of an unfinished run")
    keep_best: int = Field(1, ge=0, description="best ends of epochs to keep of an unfinished run")

    @model_validator(mode="after")
    def _fewest_are_not_more_than_all(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is at most workers, {self.workers}, got {self.min_workers}")
        return self

    @property
    def folder(self) -> Path:
        """Where results go."""
        return (self.home / "runs" / self.name).resolve()

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Make sure that no other process drives what lies in `folder`.

        Raises:
            RunLockedError: another one does.
        """
        lock = files.Lock(self.folder / ".lock", signed=True)
        if not lock.acquire(wait_s=0):
            raise RunLockedError(
                f"{self.folder} is being driven by {lock.holder}; wait for it, or give this command another "
                "--name"
            )
        with lock:
            yield

    @property
    def first_stages(self) -> Path:
        """The cache of first-stage networks."""
        return (self.home / "cache" / "first_stage").resolve()

    @property
    def saving(self) -> Saving:
        """When a run makes checkpoints, and which it keeps."""
        return Saving(self.keep_last, self.keep_best, self.save_every_s)

    @property
    def num_threads(self) -> int:
        """Compute threads of a run."""
        return max(1, int(self.cpus_per_run))
