"""A search space in the configuration's own terms; it is conditional if a setting depends on another.

A job writes it as a function of a `Space`; names are dotted paths of `TrainConfig`:

    def space(s: Space) -> None:
        s.schedule("masking.high", 0.005, 0.2, log=True)
        strategy = s.branch("masking.strategy", ["HAM", "R-HAM"])
        if strategy == "R-HAM":
            s.schedule("masking.random", 0.1, 0.8)
        else:
            s.fix("masking.random", 0.0)
        s.keep_at_least(0.2)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, get_args

from mhimdist.config.method import Masking
from mhimdist.config.schedules import ScheduleKind
from mhimdist.config.train import TrainConfig
from mhimdist.errors import SweepError

SCHEDULE_KINDS: tuple[str, ...] = get_args(ScheduleKind)


class Proposer(Protocol):
    """Chooses the values: an Optuna trial, `BaseValues`, or random answers."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number.

        Args:
            name: of the parameter.
            low, high: ends of its range, both included.
            log: whether it is searched evenly in its logarithm.
        """

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Choose a whole number; the arguments are those of `suggest_float`."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one of the choices."""


class Requirement(NamedTuple):
    """A condition that a configuration must meet to be tried, and its text for messages."""

    is_met: Callable[[TrainConfig], bool]
    text: str


class Space:
    """Collects the changes that one trial makes to the base configuration.

    Attributes:
        changes: dotted path to value, for `TrainConfig.override`.
        requirements: the conditions that the changed configuration must meet.

    Raises:
        ValueError: by the methods, if a range is empty or a name is asked for twice with other choices.

    Example:
        >>> def space(s: mh.Space) -> None:
        ...     high = s.uniform("masking.high.start", 0.005, 0.2, log=True)
        ...     if high > 0.05:
        ...         s.uniform("teacher.momentum.start", 0.99, 0.9999)
    """

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self.changes: dict[str, Any] = {}
        self.requirements: list[Requirement] = []

    def uniform(self, path: str, low: float, high: float, *, log: bool = False) -> float:
        """Search a number.

        Args:
            path: of the setting.
            low, high: ends of its range, both included.
            log: whether it is searched evenly in its logarithm.
        """
        self.changes[path] = self._proposer.suggest_float(path, low, high, log=log)
        return self.changes[path]

    def integer(self, path: str, low: int, high: int, *, log: bool = False) -> int:
        """Search a whole number.

        Args:
            path: of the setting.
            low, high: ends of its range, both included.
            log: whether it is searched evenly in its logarithm.
        """
        self.changes[path] = self._proposer.suggest_int(path, low, high, log=log)
        return self.changes[path]

    def choice(self, path: str, options: Sequence[Any]) -> Any:
        """Search among a few values."""
        self.changes[path] = self._proposer.suggest_categorical(path, list(options))
        return self.changes[path]

    def schedule(
        self, path: str, low: float, high: float, *, log: bool = False, kinds: Sequence[str] = SCHEDULE_KINDS
    ) -> None:
        """Search a schedule's value at the start and the kind of its way to the end.

        Args:
            path: of the schedule.
            low, high: ends of the range of the start value, both included.
            log: whether the start value is searched evenly in its logarithm.
            kinds: the kinds to choose among.
        """
        self.uniform(f"{path}.start", low, high, log=log)
        self.choice(f"{path}.kind", kinds)

    def fix(self, path: str, value: Any) -> None:
        """Set a value without searching it."""
        self.changes[path] = value

    def branch(self, path: str, options: Sequence[str]) -> str:
        """Search which branch to take. The branch changes nothing itself; the settings under it do.

        `path` may be a derived property such as `masking.strategy`.
        """
        return self._proposer.suggest_categorical(path, list(options))

    def require(self, is_met: Callable[[TrainConfig], bool], text: str) -> None:
        """Try only configurations that meet a condition; others are drawn again.

        Args:
            is_met: whether a draw's whole configuration meets the condition.
            text: the condition as messages name it, behind "does not": "keep half of the instances".
        """
        self.requirements.append(Requirement(is_met, text))

    def keep_at_least(self, share: float) -> None:
        """Try only masks that leave the student this share of a bag, even when their schedules peak."""
        self.require(
            lambda config: kept_share(config.masking) >= share,
            f"keep at least {share:g} of a bag's instances",
        )

    def unmet(self, config: TrainConfig) -> str | None:
        """The first requirement that a configuration fails, in words; None if it may be tried."""
        return next((text for is_met, text in self.requirements if not is_met(config)), None)


SpaceFunction = Callable[[Space], None]


def kept_share(masking: Masking) -> float:
    """The expected share of a large bag that the student sees when all masks peak together, in [0, 1].

    High and low masks do not overlap until they cover the bag; the random mask falls on both equally.
    """
    return max(0.0, 1 - masking.high.peak - masking.low.peak) * (1 - masking.random.peak)


class BaseValues:
    """Answers every question of a space with the base configuration's value; this makes the first trial.

    Attributes:
        params: the answers so far, by name.
    """

    def __init__(self, base: TrainConfig) -> None:
        self._base = base
        self.params: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """See `Proposer.suggest_float`; the answer is the base's number.

        Raises:
            SweepError: it is outside the range, or the configuration has no such setting.
        """
        value = float(value_at(self._base, name))
        if not low <= value <= high:
            raise SweepError(
                f"{name} is searched in [{low}, {high}], but the base configuration, which is the first "
                f"trial, has {value}: widen the range or change the base"
            )
        self.params[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """See `Proposer.suggest_int`; the answer is the base's number.

        Raises:
            SweepError: it is outside the range, or the configuration has no such setting.
        """
        return int(self.suggest_float(name, low, high, log=log))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """See `Proposer.suggest_categorical`; the answer is the base's value.

        Raises:
            SweepError: it is not among the choices, or the configuration has no such setting.
        """
        value = value_at(self._base, name)
        if value not in choices:
            raise SweepError(
                f"{name} is searched among {list(choices)}, but the base configuration, which is the first "
                f"trial, has {value!r}: add this value or change the base"
            )
        self.params[name] = value
        return value


def value_at(config: TrainConfig, path: str) -> Any:
    """The value at a dotted path of a configuration, derived properties included.

    Raises:
        SweepError: the configuration has no such path.
    """
    value: Any = config
    for part in path.split("."):
        if not hasattr(value, part):
            raise SweepError(f"the space searches {path}, which the configuration does not have")
        value = getattr(value, part)
    return value
