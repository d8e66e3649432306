"""The options of a cross-validation: data, folds, seeds, protocol, resources, configurations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from mhimdist.config.execution import Execution
from mhimdist.config.fields import Metavar, NotInFile
from mhimdist.config.presets import departures
from mhimdist.config.protocols import Protocol
from mhimdist.config.train import TrainConfig
from mhimdist.errors import SplitError
from mhimdist.report import formats

if TYPE_CHECKING:  # a command that prints its help should not wait for torch
    from mhimdist.data.splits import Split
    from mhimdist.data.stored import StoredBags


@dataclass(frozen=True)
class Candidate:
    """A configuration to cross-validate.

    Attributes:
        name: its name in tables.
        config: its settings; each run replaces the seed by its own.
        num_folds: run only the first `num_folds` folds; None runs all folds of the experiment.
        note: what is special about it, for the table's caption.
    """

    name: str
    config: TrainConfig
    num_folds: int | None = None
    note: str = ""


class Experiment(Execution):
    """How configurations are cross-validated, and on what."""

    protocol: Literal["strict", "paper", "refit", "both", "all"] = Field(
        "strict",
        description="strict: validation cases of the training fold select; paper: the test fold selects, as "
        "in the authors' code; refit: inner folds of the training fold select, and the network trains again "
        "on all of it; both: strict and paper, with their difference; all: the three side by side. nested, "
        "with a sweep inside each fold, is a protocol of tune, where all shows the four",
    )
    folds: int = Field(3, ge=2, description="number of folds that the cases are split into")
    run_folds: int | None = Field(
        None, ge=1, description="run only this many folds, from the first; none: all"
    )
    seeds: tuple[int, ...] = Field(
        (2021, 2022, 2023),
        min_length=1,
        description="seeds of folds, weights and random draws; more than one as 1,2,3",
    )
    split_file: Path | None = Field(
        None,
        description="table (slide,set[,fold]) or JSON of an official split, instead of folds; or a split of "
        "CLAM, MIL_BASELINE or Patho-Bench; or a folder of one file per fold",
    )
    test_share: float | None = Field(
        None, gt=0, lt=1, description="test once on this share of the cases, instead of folds"
    )
    validation_share: float = Field(
        0.15, gt=0, lt=1, description="share of the training fold's cases that selects under strict"
    )
    inner_folds: int = Field(
        5, ge=2, description="inner folds of the training fold's cases that select under refit"
    )
    paper_validation_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training fold's cases that does not train under paper, where the test fold "
        "selects",
    )

    @field_validator("protocol", mode="before")
    @classmethod
    def _searches_nothing(cls, protocol: object) -> object:
        if protocol == "nested":
            raise ValueError(
                "under nested a sweep runs inside each fold, and a cross-validation searches nothing; use "
                "`mhimdist tune --protocol nested`"
            )
        return protocol

    @model_validator(mode="after")
    def _no_seed_twice(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected each seed once, got {', '.join(map(str, self.seeds))}")
        return self

    @model_validator(mode="after")
    def _one_way_to_split(self) -> Self:
        if self.split_file is not None and self.test_share is not None:
            raise ValueError("expected test_share or split_file, got both: each of them sets the test cases")
        return self

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols asked for."""
        match self.protocol:
            case "both":
                return ("strict", "paper")
            case "all":
                return ("strict", "paper", "refit")
        return (self.protocol,)

    def splits(self, bags: "StoredBags", protocol: Protocol, seed: int) -> "list[Split]":
        """The splits of a seed, one per fold that runs. All protocols test on the same bags.

        Args:
            bags: the data set.
            protocol: decides which bags select.
            seed: seed of the folds.

        Raises:
            SplitError: the split does not fit the data.
        """
        from mhimdist.data.splits import splits_of

        # A training fold that is not divided needs no validation set, but a file may have one.
        whole = protocol == "refit" and self.split_file is None
        share = self.paper_validation_share if protocol == "paper" else self.validation_share
        splits = splits_of(
            bags,
            split_file=self.split_file,
            test_share=self.test_share,
            num_folds=self.folds,
            validation_share=0.0 if whole else share * (1 - (self.test_share or 0)),
            selects_on_test=protocol == "paper" or whole,
            seed=seed,
        )[: self.run_folds]
        return [split.whole() for split in splits] if protocol == "refit" else splits

    def inner_splits(self, bags: "StoredBags", split: "Split", seed: int) -> "list[Split]":
        """The inner folds of a split's training fold, whose runs select under refit.

        Args:
            bags: the data set.
            split: the outer split.
            seed: seed of the folds.

        Raises:
            SplitError: there are too few cases.
        """
        from mhimdist.data.inner_splits import inner_splits_of

        try:
            return inner_splits_of(bags, split, num_folds=self.inner_folds, seed=seed)
        except SplitError as error:
            raise SplitError(f"inner folds of the training fold (--inner-folds): {error}") from None

    def num_splits(self, bags: "StoredBags") -> int:
        """Number of splits per seed, including those that `run_folds` leaves out."""
        if self.split_file is not None:
            everything = self.model_copy(update={"run_folds": None})
            return len(everything.splits(bags, self.protocols[0], self.seeds[0]))
        return 1 if self.test_share is not None else self.folds

    def split_by(self, bags: "StoredBags") -> str:
        """The kind of split in words, for a caption."""
        if self.split_file is not None:
            return f"{formats.count(self.num_splits(bags), 'split')} of {self.split_file.name}"
        if self.test_share is not None:
            return f"a holdout of {self.test_share:.0%} of the cases"
        return f"{self.folds}-fold by case"


class CrossValidation(Experiment):
    """Cross-validate a configuration and the same network without masking.

    Raises:
        ConfigError: by `from_command_line` and `of_model`, if an option or a value is invalid.
        pydantic.ValidationError: by the constructor, for the same.
    """

    FIRST: ClassVar[tuple[str, ...]] = (
        *("data", "name", "model", "folds", "seeds", "protocol", "split_file", "gpus_per_run"),
        *("train.epochs", "train.bags_per_step", "train.masking.high.start"),
    )

    model: Annotated[str, Metavar("NAME"), NotInFile()] = Field(
        "abmil", description="bag model; --train starts from its preset"
    )
    train: TrainConfig = Field(TrainConfig(), description="the configuration")

    @classmethod
    def of_model(
        cls,
        base: Callable[[str, str], TrainConfig],
        *,
        model: str,
        data: str,
        arguments: list[str] | None = None,
        about: str | None = None,
        **defaults: Any,
    ) -> Self:
        """Read the options of this process; `--model` and `--data` choose the start of `--train`.

        Args:
            base: returns the configuration that `--train.*` changes, for a model's name and the data.
            model, data: defaults of `--model` and `--data`.
            arguments, about, defaults: as in `from_command_line`.

        Raises:
            ConfigError: see `from_command_line`.
        """

        def decided(given: Mapping[str, str]) -> dict[str, Any]:
            chosen = {"model": model, "data": data, **given}
            return {**defaults, **chosen, "train": base(chosen["model"], chosen["data"])}

        return cls.read_command_line(arguments, decided, decided_by=("model", "data"), about=about)

    @property
    def candidates(self) -> list[Candidate]:
        """The configuration and, if it has a teacher, the same network without masking."""
        train, plain = self.train, self.train.first_stage()
        if train.teacher.kind == "none":
            return [Candidate(train.title, train, note=departures(train))]
        return [Candidate(each.title, each, note=departures(train)) for each in (train, plain)]
