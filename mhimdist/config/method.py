"""The settings of MHIM itself: what is hidden from the student, who scores the instances, and the loss."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mhimdist.config.models import Settings
from mhimdist.config.schedules import Schedule

TeacherKind = Literal["none", "student_copy", "init", "momentum", "init_momentum"]


class Masking(Settings):
    """The shares of a bag's instances that are hidden from the student (paper, section 3.3).

    High alone is HAM; with random, R-HAM; with low, L-HAM; with both, LR-HAM. Every ratio refers to the whole
    bag and masks `ceil(ratio * N)` instances; the student misses the union of the masks.
    """

    high: Schedule = Field(
        Schedule(), description="masked ratio of the most salient instances, beta_h, in [0, 1]"
    )
    high_pool_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="randomised high masking: form a pool of the top high / high_pool_share and mask this "
        "share of it, drawn at random, in (0, 1]; 1 masks the top itself",
    )
    low: Schedule = Field(
        Schedule(), description="masked ratio of the least salient instances, beta_l, in [0, 1]"
    )
    random: Schedule = Field(
        Schedule(), description="masked ratio of randomly drawn instances, beta_r, in [0, 1]"
    )
    ranking: str | None = Field(
        None,
        description="a function of yours that says how salient instances are, as module:function, see "
        "docs/own_masking.md; none: the teacher's scores",
    )

    @field_validator("ranking")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
            raise ValueError(f"expected module:function, such as look_alikes:rank, got {value!r}")
        return value

    @model_validator(mode="after")
    def _ratios_are_shares(self) -> Self:
        for field in ("high", "low", "random"):
            schedule: Schedule = getattr(self, field)
            for edge in ("start", "end"):
                if not 0 <= getattr(schedule, edge) <= 1:
                    raise ValueError(f"{field}.{edge} is a ratio in [0, 1], got {getattr(schedule, edge)}")
        return self

    @property
    def strategy(self) -> str:
        """The paper's name for the combination: none, random, low, HAM, L-HAM, R-HAM or LR-HAM."""
        letters = ("L" if self.low.peak else "") + ("R" if self.random.peak else "")
        if self.high.peak:
            return f"{letters}-HAM" if letters else "HAM"
        return {"": "none", "L": "low", "R": "random", "LR": "low+random"}[letters]


class Momentum(Schedule):
    """The momentum of the EMA; by default a moving schedule ends at 1, which freezes the teacher."""

    start: float = Field(0.9999, ge=0, le=1, description="momentum at the start of the run")
    end: float = Field(
        1.0, ge=0, le=1, description="momentum at the end of the run; no effect if kind is constant"
    )


class Teacher(Settings):
    """The network that scores the instances (paper, section 3.4 and Table 5)."""

    kind: TeacherKind = Field(
        "init_momentum",
        description="none: no teacher; student_copy: the student itself; init: the pre-trained network, "
        "frozen; momentum: an EMA of the student; init_momentum: an EMA of the student that starts from "
        "the pre-trained network (the full method)",
    )
    momentum: Momentum = Field(Momentum(), description="EMA momentum lambda per bag, in [0, 1]")
    weights: Path | None = Field(
        None,
        description="checkpoint released by the authors to use as the pre-trained network; with {fold} or "
        "{seed} in its path, one per run; none: train the pre-trained network",
    )
    weights_of: Literal["model", "teacher"] = Field(
        "model", description="weights to take from that checkpoint: those of their student or their teacher"
    )
    dropout: bool = Field(False, description="score with dropout on, as the authors' teacher does")

    @property
    def is_pretrained(self) -> bool:
        """Whether the teacher starts from a network trained without masking on the same fold and seed."""
        return self.kind in ("init", "init_momentum")

    @property
    def has_outside_weights(self) -> bool:
        """Whether the teacher starts from a file whose training data cannot be checked here."""
        return self.is_pretrained and self.weights is not None

    @property
    def has_momentum(self) -> bool:
        """Whether the teacher follows the student as a moving average."""
        return self.kind in ("momentum", "init_momentum")


class Loss(Settings):
    """The task's loss plus alpha times the consistency loss (paper, equations 8 to 10)."""

    alpha: float = Field(0.1, ge=0, description="weight of the consistency loss, at least 0")
    temperature: float = Field(0.1, gt=0, description="temperature tau of the teacher's embedding, above 0")
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="weight of each class in the task's loss, above 0; none: all bags weigh the same"
    )
