"""The settings of a sweep: search, folds, pruning, resources, final runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from mhimdist.config import extensions
from mhimdist.config.execution import Execution
from mhimdist.config.protocols import Protocol
from mhimdist.config.train import TrainConfig
from mhimdist.errors import SplitError
from mhimdist.search.tracker import TRACKERS

if TYPE_CHECKING:  # a command that prints its help should not wait for torch
    from mhimdist.data.splits import Split
    from mhimdist.data.stored import StoredBags

OBJECTIVE = "validation_score"
STORAGE_VARIABLE = "MHIMDIST_STORAGE"

SamplerName = Literal["tpe", "cmaes", "random", "grid", "authors_grid"]
SchedulerName = Literal["asha", "hyperband", "median", "none"]
Cost = Literal["none", "time", "kept_share"]


class CostField(NamedTuple):
    """The field of a trial's reports that is its second objective, and its name in tables."""

    field: str
    text: str


COSTS: dict[str, CostField] = {
    "time": CostField("train_s", "training seconds per fold"),
    "kept_share": CostField("kept_share", "share of instances kept"),
}


class Sweep(Execution):
    """A search for a better configuration.

    Raises:
        ConfigError: by `from_command_line`, if an option or a value is invalid; the message names it.
        pydantic.ValidationError: by the constructor, for the same.
    """

    FIRST: ClassVar[tuple[str, ...]] = (
        *("data", "name", "num_trials", "sampler", "protocol", "folds", "test_share"),
        *("gpus_per_run", "train.epochs", "train.model.name", "train.bags_per_step"),
    )

    name: str = Field("sweep", description="name of the sweep's folder under runs/", pattern=r"^[\w.-]+$")
    num_trials: int = Field(24, ge=1, description="configurations to try; the first is the base")
    objective: str = Field(OBJECTIVE, description="metric that ranks the trials; never a test metric")
    against: Cost = Field(
        "none",
        description="second objective, minimised, for a Pareto front: time (training seconds per fold), "
        "kept_share (share of the instances that the student sees) or none",
    )

    protocol: Literal["strict", "refit", "nested", "all"] = Field(
        "strict",
        description="how the best configuration is judged: strict trains it again on each fold, whose "
        "validation cases select the epoch; refit trains it on all cases that do not test, for as many "
        "epochs as the folds of its trial choose; nested does so in each of outer-folds folds, with a search "
        "inside each, so that every case tests once and no figure has seen its own selection; all is nested, "
        "and beside it the base configuration, not tuned, under strict, paper and refit on the same folds",
    )
    outer_folds: int = Field(3, ge=2, description="folds that the cases are split into under nested and all")
    test_share: float = Field(
        0.35, gt=0, lt=1, description="share of the cases for the final test; no trial sees them"
    )
    folds: int = Field(
        1, ge=1, description="folds of the other cases; each fold validates once; 1: one validation share"
    )
    validation_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of the cases that validates a trial if there is one fold; under all, share of an "
        "outer training fold's cases that selects in the rows of strict",
    )
    split_file: Path | None = Field(
        None, description="table (slide,set) or JSON of an official split; no trial sees its test set"
    )
    split_seed: int = Field(0, ge=0, description="seed of the draw of test cases and folds")
    seeds: tuple[int, ...] = Field(
        (), description="seeds that each fold of a trial is run with, such as 1,2,3; none: train.seed"
    )
    parallel_folds: int = Field(
        1, ge=1, description="folds of a trial that run at once; each takes cpus-per-run and gpus-per-run"
    )

    sampler: SamplerName = Field(
        "tpe",
        description="how configurations are proposed: tpe models all parameters together; cmaes searches "
        "numbers only; random; grid; authors_grid combines the values in the authors' settings",
    )
    seed: int = Field(0, ge=0, description="seed of the proposals")
    num_startup: int = Field(8, ge=1, description="random trials before the sampler begins to model")
    grid_points: int = Field(3, ge=2, description="points per range of a grid, both ends included")
    warm_presets: bool = Field(True, description="first try the authors' settings that are in the space")
    warm_from: str | None = Field(
        None,
        description="folder of an earlier sweep, absolute or below home (such as runs/earlier); its three "
        "best configurations are tried first",
    )

    scheduler: SchedulerName = Field("asha", description="rule that stops trials early, by epoch")
    grace_epochs: int = Field(5, ge=1, description="epochs before which no trial is stopped")
    reduction_factor: int = Field(
        3, ge=2, description="one trial in this many passes each rung (asha, hyperband)"
    )
    between_folds: bool = Field(
        True,
        description="stop a trial between folds if it is below the median of the trials that finished the "
        "same folds, or can no longer become the best; has no effect with a second objective",
    )

    at_once: int | None = Field(
        None, ge=1, description="most trials that run at once; none: as many as the plan says"
    )
    max_failures_in_a_row: int = Field(5, ge=1, description="failed trials in a row that stop the sweep")
    trial_timeout_s: Annotated[float, Field(gt=0)] | Literal["auto", "off"] = Field(
        "auto",
        description="seconds without a report after which a trial's process is ended and started again; "
        "auto: 30 of the longest epochs, at least 10 minutes, and 3 times a first stage's length more; off: "
        "never",
    )
    retry_failed: bool = Field(False, description="run the configuration of each failed trial once more")
    storage: str | None = Field(
        default_factory=lambda: os.environ.get(STORAGE_VARIABLE),
        repr=False,
        description="URL of a database for the Optuna study "
        f"(default: {STORAGE_VARIABLE}, otherwise study.db in the sweep's folder); its password is never "
        "shown or written to a file",
    )
    track: str = Field(
        "none",
        description="tracker that also logs the trials: none, wandb, mlflow, or the name of one that another "
        "package adds",
    )
    final_seeds: int = Field(3, ge=1, description="seeds that the best configuration is trained again with")
    final_top: int = Field(1, ge=1, description="number of best configurations that are trained again")
    fresh: bool = Field(False, description="delete an earlier sweep of this name first")
    train: TrainConfig = Field(TrainConfig(), description="the base configuration, which is the first trial")

    @field_validator("track")
    @classmethod
    def _is_known(cls, name: str) -> str:
        """A tracker of another package is imported only when it is used."""
        if name not in TRACKERS and name not in (others := extensions.names(extensions.TRACKERS)):
            raise ValueError(f"no tracker {name!r}; valid: {', '.join((*TRACKERS, *others))}")
        return name

    @field_validator("objective", mode="before")
    @classmethod
    def _from_auc(cls, value: Any) -> Any:
        """Sweeps of earlier releases, which knew no score but the AUC, call it so."""
        return OBJECTIVE if value == "validation_auc" else value

    @model_validator(mode="after")
    def _objective_is_validation(self) -> Self:
        if "test" in self.objective:
            raise ValueError(
                f"objective {self.objective}: a sweep that picks its best trial by a test metric makes that "
                f"metric worthless as a test; use {OBJECTIVE}"
            )
        if self.objective != OBJECTIVE:
            raise ValueError(f"objective {self.objective} is unknown; use {OBJECTIVE}")
        return self

    @model_validator(mode="after")
    def _combinations_work(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds lists a seed twice: {', '.join(map(str, self.seeds))}")
        if self.against != "none" and self.scheduler != "none":
            raise ValueError(
                f"scheduler {self.scheduler} stops trials by their AUC alone, and would stop the cheap "
                f"trials that a front against {self.against} needs: use scheduler none"
            )
        if self.against != "none" and self.sampler == "cmaes":
            raise ValueError("sampler cmaes moves towards one optimum and takes no second objective: use tpe")
        if self.parallel_folds > self.folds_per_trial:
            raise ValueError(
                f"parallel_folds is {self.parallel_folds}, but a trial has only {self.folds_per_trial} runs "
                f"({self.folds} folds x {len(self.run_seeds)} seeds)"
            )
        if self.protocol != "strict" and self.folds == 1:
            raise ValueError(
                f"protocol {self.protocol} chooses by inner folds of the cases that do not test: give two or "
                "more by folds, such as --folds 5"
            )
        if self.final_protocol == "nested" and self.final_top > 1:
            raise ValueError(
                f"protocol {self.protocol} tests one configuration per outer fold: set final_top to 1"
            )
        if self.parallel_folds > 1 and self.workers > 1:
            raise ValueError("parallel_folds and workers both divide a trial's resources: set one to 1")
        return self

    @property
    def final_protocol(self) -> Protocol:
        """The protocol of its final runs; under nested it runs a sweep inside each outer fold."""
        return "nested" if self.protocol == "all" else self.protocol

    def inside(self, number: int) -> "Sweep":
        """The sweep inside an outer fold, counted from 1."""
        return self.model_copy(update={"name": f"{self.name}/outer-{number}", "protocol": "nested"})

    @property
    def run_seeds(self) -> tuple[int, ...]:
        """The seeds with which each fold is run."""
        return self.seeds or (self.train.seed,)

    @property
    def is_grid(self) -> bool:
        """Whether the trials are the points of a grid, which no sampler proposes."""
        return self.sampler in ("grid", "authors_grid")

    @property
    def folds_per_trial(self) -> int:
        """Runs of a complete trial: folds times seeds."""
        return self.folds * len(self.run_seeds)

    @property
    def num_waves(self) -> int:
        """Groups of runs that a trial trains one after another."""
        return -(-self.folds_per_trial // self.parallel_folds)

    @property
    def is_pruning(self) -> bool:
        """Whether trials can be stopped early at all."""
        return self.against == "none" and (self.scheduler != "none" or self.between_folds)

    def splits(self, bags: "StoredBags") -> "list[Split]":
        """One split per fold. All have one test set; no fold trains on its cases or validates with them.

        Raises:
            SplitError: there are too few cases, or the file holds more than one split.
        """
        from mhimdist.data.splits import splits_of

        outer, *others = splits_of(
            bags,
            split_file=self.split_file,
            test_share=self.test_share,
            validation_share=self.validation_share,
            seed=self.split_seed,
        )
        if others:
            raise SplitError(
                f"{self.split_file} holds {len(others) + 1} splits; a sweep needs one test set that none of "
                "its folds trains on: give a file with one split, and divide the other cases by --folds"
            )
        return [outer] if self.folds == 1 else self.inner_splits(bags, outer)

    def outer_splits(self, bags: "StoredBags") -> "list[Split]":
        """The outer folds under nested, whose training bags are not divided yet.

        Raises:
            SplitError: there are too few cases.
        """
        from mhimdist.data.splits import splits_of

        outer = splits_of(
            bags,
            split_file=self.split_file,
            num_folds=self.outer_folds,
            # A file may have validation sets; folds are made without.
            validation_share=self.validation_share if self.split_file else 0.0,
            selects_on_test=self.split_file is None,
            seed=self.split_seed,
        )
        return [split.whole() for split in outer]

    def inner_splits(self, bags: "StoredBags", outer: "Split") -> "list[Split]":
        """The folds of the cases that do not test.

        Raises:
            SplitError: there are too few cases.
        """
        from mhimdist.data.inner_splits import inner_splits_of

        return inner_splits_of(bags, outer, num_folds=self.folds, seed=self.split_seed)
