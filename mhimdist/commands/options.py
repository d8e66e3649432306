"""The options of the commands that train, which begin with the authors' settings for a data set and model."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mhimdist.config.fields import Hidden
from mhimdist.config.presets import PAPER_FOLDS, digits_preset, preset
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.options import Candidate, CrossValidation
from mhimdist.paper.options import Ablation
from mhimdist.run_files.kinds import KINDS
from mhimdist.search.options import Sweep

Preset = Literal["c16", "tcga"]
ModelName = Literal["abmil", "dsmil", "transmil", "clam_sb", "clam_mb", "dtfd", "max_pooling", "mean_pooling"]
SIZED_FOR_DIGITS = "digits-"
_PRESET = "the authors' settings to start from, for CAMELYON16 or TCGA; smaller for the embedded digits"
_MODEL = "bag model; --train starts from its preset"


def started(given: Mapping[str, str]) -> dict[str, Any]:
    """The defaults of `preset`, `model`, `data` and `train`, from what is given for the first three.

    Raises:
        ConfigError: there is no such preset or model.
    """
    dataset, model = given.get("preset", "c16"), given.get("model", "abmil")
    data = given.get("data", f"{SIZED_FOR_DIGITS}{dataset}")
    make = digits_preset if data.startswith(SIZED_FOR_DIGITS) else preset
    return {"preset": dataset, "model": model, "data": data, "train": make(dataset, model)}


class CrossValidate(CrossValidation):
    """Train folds x seeds of one configuration, with and without masking, and test each once.

    Raises:
        ConfigError: by `from_command_line`, if an option or a value is invalid.
        pydantic.ValidationError: by the constructor, for the same.
    """

    DECIDED_BY: ClassVar[tuple[str, ...]] = ("preset", "model", "data")
    FIRST: ClassVar[tuple[str, ...]] = ("preset", *CrossValidation.FIRST)

    preset: Preset = Field("c16", description=_PRESET)
    model: ModelName = Field("abmil", description=_MODEL)

    @classmethod
    def defaults_for(cls, given: Mapping[str, str]) -> dict[str, Any]:
        """The authors' settings and folds for the data set and model that are given."""
        begun = started(given)
        return {**begun, **PAPER_FOLDS[begun["preset"]], "name": "cross_validation"}


class Train(CrossValidate):
    """Train one network and test it once: on a share of the cases, or on the first of several folds."""

    DECIDED_BY: ClassVar[tuple[str, ...]] = (*CrossValidate.DECIDED_BY, "folds", "split_file")
    FIRST: ClassVar[tuple[str, ...]] = (
        *("data", "name", "preset", "model", "test_share", "validation_share", "folds", "split_file"),
        *("workers", "gpus_per_run", "train.epochs", "train.bags_per_step", "train.masking.high.start"),
    )

    @classmethod
    def defaults_for(cls, given: Mapping[str, str]) -> dict[str, Any]:
        """A holdout, unless folds or a file of splits are given: then the first fold."""
        is_split = "folds" in given or "split_file" in given
        return {
            **super().defaults_for(given),
            **KINDS["train"].defaults,
            "name": "train",
            "test_share": None if is_split else 0.35,
        }

    @property
    def candidates(self) -> list[Candidate]:
        """The configuration alone."""
        return super().candidates[:1]


class Tune(Sweep):
    """Search for better settings, train the best again with new seeds, and test it once.

    Raises:
        ConfigError: by `from_command_line`, if an option or a value is invalid.
        pydantic.ValidationError: by the constructor, for the same.
    """

    DECIDED_BY: ClassVar[tuple[str, ...]] = ("preset", "model", "data")
    FIRST: ClassVar[tuple[str, ...]] = (
        *("data", "name", "preset", "model", "num_trials", "sampler", "protocol", "folds", "test_share"),
        *("gpus_per_run", "train.epochs"),
    )

    preset: Preset = Field("c16", description=_PRESET)
    model: Literal["abmil", "dsmil", "transmil"] = Field("abmil", description=_MODEL)
    space: Annotated[dict[str, Any] | None, Hidden()] = Field(
        None, description="the search space of a file; none: the package's own"
    )

    @classmethod
    def defaults_for(cls, given: Mapping[str, str]) -> dict[str, Any]:
        """The authors' settings for the data set and model that are given."""
        return {**started(given), "name": "tune"}

    @property
    def sweep(self) -> Sweep:
        """The sweep itself."""
        return Sweep.model_construct(
            self.model_fields_set & Sweep.model_fields.keys(),
            **{name: getattr(self, name) for name in Sweep.model_fields},
        )


class Ablate(Ablation):
    """Fill Tables 1 to 5 of the paper, on its data sets or on the embedded digits."""

    DECIDED_BY: ClassVar[tuple[str, ...]] = ("preset", "quick", "data")

    @classmethod
    def defaults_for(cls, given: Mapping[str, str]) -> dict[str, Any]:
        """The authors' folds for the data set; with --quick all rows in under 2 hours on 2 cores."""
        begun = started({name: text for name, text in given.items() if name != "quick"})
        quick = {"seeds": (2021,), "transmil_folds": 1, "transmil_epochs": 15} if "quick" in given else {}
        chosen = {name: begun[name] for name in ("preset", "data")}
        return {**chosen, **PAPER_FOLDS[begun["preset"]], "name": "ablate", **quick}

    def base(self, model: str) -> TrainConfig:
        """The settings that a model's rows start from."""
        return started({"preset": self.preset, "model": model, "data": self.data})["train"]
