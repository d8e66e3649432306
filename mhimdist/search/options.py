"""What a sweep can be asked for: search, folds, pruning, resources, final runs."""

import os
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from mhimdist.config.execution import Execution
from mhimdist.config.train import TrainConfig
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split, k_folds, splits_of
from mhimdist.errors import SplitError

OBJECTIVE = "validation_auc"
STORAGE_VARIABLE = "MHIMDIST_STORAGE"

SamplerName = Literal["tpe", "cmaes", "random", "grid", "authors_grid"]
SchedulerName = Literal["asha", "hyperband", "median", "none"]
Cost = Literal["none", "time", "kept_share"]


class CostField(NamedTuple):
    """Which of a trial's reports is its second objective, and what that is called."""

    field: str
    text: str


COSTS: dict[str, CostField] = {
    "time": CostField("train_s", "seconds of training a fold"),
    "kept_share": CostField("kept_share", "share of instances kept"),
}


class Sweep(Execution):
    """A search for a better configuration."""

    name: str = Field("sweep", description="of the sweep's folder under runs/", pattern=r"^[\w.-]+$")
    num_trials: int = Field(24, ge=1, description="configurations to try, the base itself first")
    objective: str = Field(OBJECTIVE, description="what a trial is judged by; never a test metric")
    against: Cost = Field(
        "none",
        description="what is minimised beside it, for a Pareto front: time, seconds of training a fold; "
        "kept_share, instances that the student sees; none: nothing",
    )

    test_share: float = Field(0.35, gt=0, lt=1, description="share of the cases that the sweep never sees")
    folds: int = Field(
        1, ge=1, description="folds of the other cases, each of which validates once; 1: one validation share"
    )
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="share of the cases that judges a trial where there is one fold"
    )
    split_file: Path | None = Field(
        None, description="CSV (slide,set) or JSON of an official split, whose test set the sweep never sees"
    )
    split_seed: int = Field(0, ge=0, description="of the draw of test cases and folds")
    seeds: tuple[int, ...] = Field(
        (), description="seeds with which each fold of a trial is run, several as 1,2,3; none: train.seed"
    )
    parallel_folds: int = Field(
        1, ge=1, description="folds of a trial that run at once, each with cpus-per-run and gpus-per-run"
    )

    sampler: SamplerName = Field(
        "tpe",
        description="who proposes: tpe, a model of all parameters together; cmaes, for numbers only; random; "
        "grid; authors_grid, all combinations of the values in the authors' settings",
    )
    seed: int = Field(0, ge=0, description="of the proposals")
    num_startup: int = Field(8, ge=1, description="trials drawn at random before the sampler models them")
    grid_points: int = Field(3, ge=2, description="points of a range in a grid, its ends included")
    warm_presets: bool = Field(True, description="try the authors' settings that lie in the space first")
    warm_from: str | None = Field(
        None,
        description="folder of an earlier sweep, below home (as runs/earlier) or absolute, whose three best "
        "configurations are tried first",
    )

    scheduler: SchedulerName = Field("asha", description="which trials are stopped early, by epoch")
    grace_epochs: int = Field(5, ge=1, description="epochs before which no trial is stopped")
    reduction_factor: int = Field(
        3, ge=2, description="at every rung one trial in so many goes on (asha, hyperband)"
    )
    between_folds: bool = Field(
        True,
        description="stop a trial between folds: below the median of those that finished the same folds, or "
        "unable to become the best; not with several objectives",
    )

    at_once: int | None = Field(None, ge=1, description="trials that run at once; none: what the plan says")
    max_failures_in_a_row: int = Field(
        5, ge=1, description="trials that may fail one after the other before the sweep stops"
    )
    retry_failed: bool = Field(False, description="run the configurations of trials that failed once more")
    storage: str | None = Field(
        default_factory=lambda: os.environ.get(STORAGE_VARIABLE),
        repr=False,
        description="URL of the Optuna study, of any database "
        f"(default: {STORAGE_VARIABLE}, else study.db in the sweep's folder); its password is shown and kept "
        "nowhere",
    )
    track: Literal["none", "wandb", "mlflow"] = Field("none", description="also log trials there")
    final_seeds: int = Field(3, ge=1, description="seeds with which the best configuration is trained again")
    final_top: int = Field(1, ge=1, description="so many of the best configurations are trained again")
    fresh: bool = Field(False, description="delete an earlier sweep of this name first")
    train: TrainConfig = Field(TrainConfig(), description="the base configuration, which is the first trial")

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
            raise ValueError(f"seeds lists one twice: {', '.join(map(str, self.seeds))}")
        if self.against != "none" and self.scheduler != "none":
            raise ValueError(
                f"scheduler {self.scheduler} stops trials by their AUC alone and would cut off the cheap "
                f"ones "
                f"that a front against {self.against} is about: use scheduler none"
            )
        if self.against != "none" and self.sampler == "cmaes":
            raise ValueError("sampler cmaes moves towards one optimum and knows no second objective: use tpe")
        if self.parallel_folds > self.folds_per_trial:
            raise ValueError(
                f"parallel_folds is {self.parallel_folds}, but a trial has only {self.folds_per_trial} runs "
                f"({self.folds} folds x {len(self.run_seeds)} seeds)"
            )
        if self.parallel_folds > 1 and self.workers > 1:
            raise ValueError("parallel_folds and workers both share out a trial's resources: set one of them")
        return self

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
        """Runs of a complete trial."""
        return self.folds * len(self.run_seeds)

    @property
    def num_waves(self) -> int:
        """Groups of runs of a trial that follow each other."""
        return -(-self.folds_per_trial // self.parallel_folds)

    @property
    def is_pruning(self) -> bool:
        """Whether trials can be stopped early at all."""
        return self.against == "none" and (self.scheduler != "none" or self.between_folds)

    def splits(self, bags: BagShards) -> list[Split]:
        """A split for every fold; all share one test set, whose cases no fold trains on or validates with.

        Raises:
            SplitError: there are too few cases, or the file holds several splits.
        """
        outer, *others = splits_of(
            bags,
            split_file=self.split_file,
            test_share=self.test_share,
            validation_share=self.validation_share,
            seed=self.split_seed,
        )
        if others:
            raise SplitError(
                f"{self.split_file} holds {len(others) + 1} splits; a sweep needs one test set that no fold "
                "of it trains on: give a file of one split, and --folds for the rest"
            )
        if self.folds == 1:
            return [outer]
        seen = set(outer.train) | set(outer.validation)
        rows = [row for row, key in enumerate(bags.keys) if key in seen]
        inner = k_folds(
            [bags.keys[row] for row in rows],
            [bags.cases[row] for row in rows],
            bags.labels_N[rows],
            num_folds=self.folds,
            validation_share=0.0,
            selects_on_test=True,  # of the fold that is held out here, which is no test set
            seed=self.split_seed,
        )
        splits = [Split(fold.train, fold.validation, outer.test) for fold in inner]
        for split in splits:
            split.check(bags.keys, bags.cases, bags.labels_N)
        return splits
