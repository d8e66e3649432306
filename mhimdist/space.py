"""A search space in the configuration's own terms, conditional where a setting matters only with another.

A job writes it as a function of a `Space`; names are dotted paths of `TrainConfig`:

    def space(s: Space) -> None:
        s.schedule("masking.high", 0.005, 0.2, log=True)
        strategy = s.branch("masking.strategy", ["HAM", "R-HAM"])
        if strategy == "R-HAM":
            s.schedule("masking.random", 0.1, 0.8)
        else:
            s.fix("masking.random", 0.0)
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, get_args

from mhimdist.config import TrainConfig
from mhimdist.errors import SweepError
from mhimdist.schedules import ScheduleKind

SCHEDULE_KINDS: tuple[str, ...] = get_args(ScheduleKind)


class Proposer(Protocol):
    """Who chooses the values: an Optuna trial, or `BaseValues`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


class Space:
    """Collects what one trial changes of the base configuration.

    Attributes:
        changes: dotted path to value, for `TrainConfig.override`.
    """

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self.changes: dict[str, Any] = {}

    def uniform(self, path: str, low: float, high: float, *, log: bool = False) -> float:
        """Search a number in [low, high], evenly or, with `log`, evenly in its logarithm."""
        self.changes[path] = self._proposer.suggest_float(path, low, high, log=log)
        return self.changes[path]

    def choice(self, path: str, options: Sequence[Any]) -> Any:
        """Search among a few values."""
        self.changes[path] = self._proposer.suggest_categorical(path, list(options))
        return self.changes[path]

    def schedule(
        self, path: str, low: float, high: float, *, log: bool = False, kinds: Sequence[str] = SCHEDULE_KINDS
    ) -> None:
        """Search a schedule's value at the start and the way it goes to its end."""
        self.uniform(f"{path}.start", low, high, log=log)
        self.choice(f"{path}.kind", kinds)

    def fix(self, path: str, value: Any) -> None:
        """Set a value without searching it."""
        self.changes[path] = value

    def branch(self, path: str, options: Sequence[str]) -> str:
        """Search which branch to take; it changes nothing itself, the settings under it do.

        `path` may be a derived property such as `masking.strategy`.
        """
        return self._proposer.suggest_categorical(path, list(options))


SpaceFunction = Callable[[Space], None]


class BaseValues:
    """Answers every question of a space with the base configuration's own value: the first trial.

    Attributes:
        params: the answers so far.
    """

    def __init__(self, base: TrainConfig) -> None:
        self._base = base
        self.params: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The base's number.

        Raises:
            SweepError: it lies outside the range.
        """
        value = float(self._value(name))
        if not low <= value <= high:
            raise SweepError(
                f"{name} is searched in [{low}, {high}], but the base configuration, which is the first "
                f"trial, has {value}: widen the range or change the base"
            )
        self.params[name] = value
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The base's value.

        Raises:
            SweepError: it is not among the choices.
        """
        value = self._value(name)
        if value not in choices:
            raise SweepError(
                f"{name} is searched among {list(choices)}, but the base configuration, which is the first "
                f"trial, has {value!r}: add it or change the base"
            )
        self.params[name] = value
        return value

    def _value(self, path: str) -> Any:
        value: Any = self._base
        for part in path.split("."):
            if not hasattr(value, part):
                raise SweepError(f"the space searches {path}, which the configuration does not have")
            value = getattr(value, part)
        return value
