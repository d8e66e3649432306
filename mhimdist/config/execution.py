"""`Execution`: where the runs of a job read and write, and which share of a cluster each of them takes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from mhimdist import files
from mhimdist.config.fields import Metavar
from mhimdist.config.option_groups import GROUPS
from mhimdist.config.options import Options
from mhimdist.config.train import TrainConfig
from mhimdist.errors import ConfigError, RunLockedError
from mhimdist.files import home


@dataclass(frozen=True)
class Saving:
    """When a run saves checkpoints, and which it keeps; training itself does not depend on it.

    Attributes:
        keep_last: number of newest checkpoints to keep, at least 1.
        keep_best: number of checkpoints to keep from the epochs with the highest validation score.
        every_s: seconds between checkpoints within an epoch; None saves only at the end of each epoch.
    """

    keep_last: int = 2
    keep_best: int = 1
    every_s: float | None = None


class Execution(Options):
    """Where runs read and write, and which share of a cluster each of them takes."""

    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = GROUPS

    home: Path = Field(
        default_factory=home,
        description="folder that contains data/, runs/ and cache/, on storage that every node sees "
        "(default: MHIMDIST_HOME, otherwise ~/mhimdist)",
    )
    name: str = Field(
        "cross_validation", description="name of the results folder under runs/", pattern=r"^[\w.-]+$"
    )
    data: Annotated[str, Metavar("DATA")] = Field(
        "digits-c16",
        description="name of an embedded data set, or path or URL (s3, gs, https, ...) of a folder of shards",
    )
    features: str | None = Field(
        None,
        description="feature set of the data to train on, if they have several by name; a+b puts two side by "
        "side; stands for train.features",
    )
    bag_of: Literal["slide", "case"] = Field(
        "slide",
        description="what one bag is; case: all slides of a case, read where they are. The slides of a case "
        "then need one label, and all figures are by case",
    )
    cpus_per_run: float = Field(1.0, gt=0, description="CPU cores per run; it computes with as many threads")
    gpus_per_run: float | None = Field(
        None,
        ge=0,
        description="share of a GPU per run; none: a quarter if the cluster has GPUs, or in a sweep a share "
        "by the memory that a run needs",
    )
    workers: int = Field(
        1,
        ge=1,
        description="processes that train one run together, each with cpus-per-run cores and, if the "
        "cluster has GPUs, one GPU. With more than one, runs follow each other. A step has "
        "train.bags-per-step bags whatever the number of workers",
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="fewest workers to resume with when the cluster shrinks; none: wait for all of them",
    )
    max_failures: int = Field(3, ge=0, description="times that a run's lost workers are started again")
    worker_timeout_s: float = Field(
        300.0, gt=0, description="seconds to wait for a silent worker before an error names it"
    )
    save_every_s: float | None = Field(
        60.0, ge=0, description="seconds between checkpoints within an epoch; none: only at its end"
    )
    insecure: bool = Field(
        False,
        description="use Ray even if RAY_AUTH_MODE opens the cluster to everybody who reaches it",
    )
    keep_last: int = Field(2, ge=1, description="number of newest checkpoints to keep of an unfinished run")
    keep_best: int = Field(
        1, ge=0, description="number of checkpoints to keep of an unfinished run's best epochs"
    )

    @model_validator(mode="before")
    @classmethod
    def _features_are_trained_on(cls, values: Any) -> Any:
        """Put the chosen feature set into the configuration of a job that has one."""
        if not isinstance(values, Mapping) or values.get("features") is None:
            return values
        default = cls.model_fields["train"].default if "train" in cls.model_fields else None
        train = values.get("train", default)
        if isinstance(train, TrainConfig):
            return {**values, "train": train.override({"features": values["features"]})}
        if isinstance(train, Mapping):
            return {**values, "train": {**train, "features": values["features"]}}
        return values

    @model_validator(mode="after")
    def _fewest_are_not_more_than_all(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers must be at most workers, {self.workers}, got {self.min_workers}")
        return self

    @field_validator("name")
    @classmethod
    def _name_stays_below_runs(cls, name: str) -> str:
        files.inside(Path("runs"), name, "name", error=ConfigError)
        return name

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return (self.home / "runs" / self.name).resolve()

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Keep every other process from driving `folder` while this context is entered.

        Raises:
            RunLockedError: another process drives it.
        """
        lock = files.Lock(self.folder / ".lock", signed=True)
        if not lock.acquire(wait_s=0):
            raise RunLockedError(
                f"{self.folder} is being driven by {lock.holder}; wait until it ends, or give this command "
                "another --name"
            )
        with lock:
            yield

    @property
    def first_stages(self) -> Path:
        """The cache of first-stage networks."""
        return (self.home / "cache" / "first_stage").resolve()

    @property
    def saving(self) -> Saving:
        """When a run saves checkpoints, and which it keeps."""
        return Saving(self.keep_last, self.keep_best, self.save_every_s)

    @property
    def num_threads(self) -> int:
        """Number of compute threads of a run."""
        return max(1, int(self.cpus_per_run))
