"""How a quantity changes over a run: constant, cosine, linear or a staircase."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ScheduleKind = Literal["constant", "cosine", "linear", "step"]


class Schedule(BaseModel):
    """A value as a function of the share of the run's bags already seen.

    A plain number is a constant schedule: `Schedule.model_validate(0.2)`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float = Field(0.0, description="value at the start of the run")
    kind: ScheduleKind = Field(
        "constant",
        description="how the value moves from start to end: not at all, along half a cosine, along a line, "
        "or in stages",
    )
    end: float = Field(0.0, description="value at the end of the run; no effect if kind is constant")
    num_stages: int = Field(4, ge=2, description="number of equal stages if kind is step")

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"start": value} if isinstance(value, int | float) else value

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]: `start` at 0, and `end` at 1 if the schedule moves."""
        match self.kind:
            case "constant":
                return self.start
            case "cosine":
                share = (1 - math.cos(math.pi * progress)) / 2
            case "linear":
                share = progress
            case "step":
                share = min(int(progress * self.num_stages), self.num_stages - 1) / (self.num_stages - 1)
        return self.start + (self.end - self.start) * share

    @property
    def peak(self) -> float:
        """The largest value of the schedule."""
        return self.start if self.kind == "constant" else max(self.start, self.end)
