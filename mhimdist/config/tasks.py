"""The tasks' settings: how the label of a bag is learnt, where a task leaves a choice."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from mhimdist.config.models import Settings


class AutoTask(Settings):
    """The task that the data set states, with its default settings; classification if it states none."""

    name: Literal["auto"] = Field("auto", description="what a bag's label means")


class ClassificationTask(Settings):
    """One of several classes."""

    name: Literal["classification"] = Field("classification", description="what a bag's label means")


class OrdinalTask(Settings):
    """A grade: one of several classes in ascending order."""

    name: Literal["ordinal"] = Field("ordinal", description="what a bag's label means")
    ordinal_loss: Literal["corn", "cumulative"] = Field(
        "corn",
        description="corn: one conditional probability per step between grades (Shi et al. 2023); "
        "cumulative: one score and learnt cut points, the proportional-odds model",
    )


class MultilabelTask(Settings):
    """Several labels, each present, absent or unknown."""

    name: Literal["multilabel"] = Field("multilabel", description="what a bag's label means")


class RegressionTask(Settings):
    """One or several numbers."""

    name: Literal["regression"] = Field("regression", description="what a bag's label means")
    huber_delta: float = Field(
        1.0,
        gt=0,
        description="where the Huber loss turns from quadratic to linear, in standard deviations of the "
        "training bags' target",
    )


class SurvivalTask(Settings):
    """The time to an event that was seen, or until which it was not seen."""

    name: Literal["survival"] = Field("survival", description="what a bag's label means")
    survival_loss: Literal["nll", "cox"] = Field(
        "nll",
        description="nll: likelihood of the time's bin, as in MHIM's second version; cox: partial likelihood",
    )
    num_bins: int = Field(
        4, ge=2, description="bins of time for nll, with equally many of the training bags' events"
    )
    event_weight: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="additional weight w of bags with an event in nll: (1 - w) all bags + w those with one",
    )
    risk_set: Literal["memory", "step"] = Field(
        "memory",
        description="bags that cox compares a bag with; memory: all training bags, by their last scores, so "
        "that one bag per step is enough; step: the bags of the same step, on one worker",
    )

    def without_effect(self) -> list[tuple[str, str]]:
        """The settings that differ from their defaults but change nothing, and why."""
        of_loss = {"nll": ("num_bins", "event_weight"), "cox": ("risk_set",)}
        default = SurvivalTask()
        return [
            (field, f"survival_loss is {self.survival_loss}")
            for loss, fields in of_loss.items()
            for field in fields
            if loss != self.survival_loss and getattr(self, field) != getattr(default, field)
        ]


class CustomTask(Settings):
    """A task that a class of yours defines, see docs/tasks.md."""

    name: Literal["custom"] = Field("custom", description="what a bag's label means")
    entry: str = Field(
        description="the class, as module:Class; the module must be importable wherever it runs"
    )
    options: dict[str, float | str | bool] = Field({}, description="settings of that class, by name")

    @field_validator("entry")
    @classmethod
    def _names_a_class(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
            raise ValueError(f"expected module:Class, such as my_tasks:CellCount, got {value!r}")
        return value


# AutoTask is last because --help shows the defaults of the last one.
TaskSettings = Annotated[
    ClassificationTask | OrdinalTask | MultilabelTask | RegressionTask | SurvivalTask | CustomTask | AutoTask,
    Field(discriminator="name"),
]

TASK_NAMES = ("auto", "classification", "ordinal", "multilabel", "regression", "survival", "custom")
