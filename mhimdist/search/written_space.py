"""A search space as data, as a file's section `space` states it; it asks what the same function would ask.

    space:
      masking.high: {schedule: [0.005, 0.2], log: true}
      masking.strategy:
        branch:
          HAM: {masking.random: {fix: 0.0}}
          R-HAM: {masking.random: {schedule: [0.1, 0.8]}}
      keep_at_least: 0.2

Keys are dotted paths of `TrainConfig`, and their order is the order of the questions, so this space has the
digest and the proposals of the function in `space.py` that says the same.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mhimdist.config.fields import choices_of, file_settings_of, members_of
from mhimdist.config.nearest import did_you_mean
from mhimdist.config.run_file import Path_, SettingError
from mhimdist.config.train import TrainConfig
from mhimdist.foreign_text import one_line
from mhimdist.search.space import SCHEDULE_KINDS, Space

KEEP = "keep_at_least"
VERBS = ("uniform", "integer", "schedule", "choice", "branch", "fix")
_RANGES = ("uniform", "integer", "schedule")
_MOST_CHOICES = 1000
NO_VALUE = ("none", "None")

Plain = bool | int | float | str | None
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
Choices = Annotated[list[Plain], Field(min_length=1, max_length=_MOST_CHOICES)]
Branches = Annotated[dict[str, dict[str, Any] | None], Field(min_length=1, max_length=_MOST_CHOICES)]


class Entry(BaseModel):
    """How one setting is searched: one of the six verbs, and what it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    uniform: Bounds | None = Field(None, description="search a number; both ends of its range")
    integer: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        None, description="search a whole number; both ends of its range"
    )
    schedule: Bounds | None = Field(
        None, description="search a schedule: both ends of the range of its start value, and its kind"
    )
    choice: Choices | Branches | None = Field(
        None, description="search among values; with settings below each value, they are searched with it"
    )
    branch: Annotated[list[str], Field(min_length=1)] | Branches | None = Field(
        None,
        description="search which branch to take, such as masking.strategy; the settings below each branch "
        "are what it changes",
    )
    fix: Any = Field(None, description="set a value without searching it")
    log: bool = Field(False, description="search a range evenly in its logarithm")
    kinds: list[str] | None = Field(None, description="kinds of schedules to choose among; none: all")

    @model_validator(mode="after")
    def _one_verb(self) -> "Entry":
        given = [verb for verb in VERBS if verb in self.model_fields_set]
        if len(given) != 1:
            raise ValueError(
                f"expected one of {', '.join(VERBS)}, got {' and '.join(given) if given else 'none of them'}"
            )
        verb = given[0]
        if verb not in _RANGES and "log" in self.model_fields_set:
            raise ValueError(f"log belongs to {', '.join(_RANGES)}, got it with {verb}")
        if verb != "schedule" and self.kinds is not None:
            raise ValueError(f"kinds belongs to schedule, got it with {verb}")
        if verb in _RANGES:
            low, high = getattr(self, verb)
            if not low <= high:
                raise ValueError(f"expected [low, high], got [{low:g}, {high:g}]")
            if self.log and low <= 0:
                raise ValueError(f"expected a range above 0 with log, got [{low:g}, {high:g}]")
        return self

    @property
    def verb(self) -> str:
        """The verb that is given."""
        return next(verb for verb in VERBS if verb in self.model_fields_set)


class WrittenSpace:
    """A search space made of plain data; call it with a `Space`, like a function.

    Attributes:
        tree: the plain data.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        """Check the data.

        Args:
            tree: how each setting is searched, by its dotted path.

        Raises:
            SettingError: an entry is wrong; it names the path.
        """
        if not isinstance(tree, Mapping):
            raise SettingError((), f"expected settings to search, got {one_line(tree, 40)}")
        self.tree = dict(tree)
        self._asks = _asks_of(self.tree, ())
        if not self._asks:
            raise SettingError((), "expected settings to search, got none")

    def __call__(self, space: Space) -> None:
        """Ask the questions of this space."""
        _ask(self._asks, space)


_Ask = tuple[str, Any, dict[Any, Any]]
"""A path, its entry (or the share of `keep_at_least`), and what to ask below each of its choices."""


def _asks_of(tree: Mapping[str, Any], above: Path_) -> list[_Ask]:
    asks: list[_Ask] = []
    for key, value in tree.items():
        here = (*above, key)
        if key == KEEP:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise SettingError(here, f"expected a share in (0, 1], got {one_line(value, 40)}")
            asks.append((KEEP, float(value), {}))
            continue
        entry = _checked(key, _entry(value, here), here)
        inner: dict[Any, Any] = {}
        if isinstance(found := getattr(entry, entry.verb), dict) and entry.verb != "fix":
            for name, below in found.items():
                at = (*here, entry.verb, name)
                choice = name if entry.verb == "branch" else _value(key, name, at, is_key=True)
                inner[choice] = _asks_of(below or {}, at)
        asks.append((key, entry, inner))
    return asks


def _entry(value: Any, path: Path_) -> Entry:
    if not isinstance(value, dict):
        raise SettingError(
            path, f"expected how it is searched, such as {{uniform: [0.1, 1]}}, got {one_line(value, 40)}"
        )
    for key in value:
        if key not in Entry.model_fields:
            hint = did_you_mean(key, Entry.model_fields)
            raise SettingError(
                (*path, key), f"unknown key{hint}; valid here: {', '.join(Entry.model_fields)}"
            )
    try:
        return Entry.model_validate(value)
    except ValidationError as error:
        item = error.errors()[0]
        at = [part for part in item["loc"] if part in value or isinstance(part, int)]
        got = "" if item["type"] == "value_error" else f", got {one_line(item['input'], 40)}"
        raise SettingError((*path, *at), item["msg"].removeprefix("Value error, ") + got) from None


def _checked(path: str, entry: Entry, here: Path_) -> Entry:
    """The entry with the values that its setting takes; refuses a setting that does not exist."""
    verb = entry.verb
    if verb == "branch":
        if path not in _derived() and path not in _annotations():
            raise SettingError(here, _unknown(path, [*_derived(), *_annotations()]))
        return entry
    if verb == "schedule" or path in _schedules():
        return _checked_schedule(path, entry, here)
    if path not in _annotations():
        if verb == "fix" and any(name.startswith(f"{path}.") for name in _annotations()):
            return entry  # a whole group
        raise SettingError(here, _unknown(path, [*_annotations(), *_schedules()]))
    found = getattr(entry, verb)
    if verb == "fix":
        return entry.model_copy(update={verb: _value(path, found, (*here, verb))})
    has_keys = isinstance(found, dict)
    made = [
        _value(path, value, (*here, verb, value if has_keys else at), is_key=has_keys)
        for at, value in enumerate(found)
    ]
    if len(set(map(repr, made))) < len(made) and verb == "choice":
        raise SettingError((*here, verb), "expected each value once")
    return entry if has_keys else entry.model_copy(update={verb: made})


def _checked_schedule(path: str, entry: Entry, here: Path_) -> Entry:
    if path not in _schedules():
        raise SettingError(here, _unknown(path, _schedules(), "no schedule"))
    if entry.verb in ("uniform", "integer", "choice"):
        raise SettingError(here, f"{path} is a schedule: search it by schedule, or search {path}.start")
    if kind := next((each for each in entry.kinds or () if each not in SCHEDULE_KINDS), None):
        close = did_you_mean(kind, SCHEDULE_KINDS)
        raise SettingError(
            (*here, "kinds"), f"expected kinds among {', '.join(SCHEDULE_KINDS)}, got {kind}{close}"
        )
    for at, value in enumerate(entry.schedule or ()):
        _value(f"{path}.start", value, (*here, "schedule", at))
    return entry


def _value(path: str, value: Any, here: Path_, *, is_key: bool = False) -> Any:
    """A value as the setting takes it: `none` is no value where the setting may have none.

    Args:
        path: of the setting.
        value: as it is written.
        here: where it is.
        is_key: whether it is a key, of which YAML gives only the text.
    """
    reasons: list[str] = []
    for at, annotation in enumerate(_annotations()[path]):
        members = members_of(annotation)
        if value in NO_VALUE and type(None) in members and "none" not in choices_of(annotation):
            return None
        try:
            made = _adapter(path, at).validate_python(value)
        except ValidationError as error:
            reasons += [item["msg"] for item in error.errors()]
            continue
        if is_key:
            return made
        if isinstance(value, bool) == isinstance(made, bool) and (
            not isinstance(value, str) or isinstance(made, str | Path)
        ):
            return value
        reasons.append(f"expected {type(made).__name__}, not {type(value).__name__}")
    raise SettingError(here, f"{', or '.join(dict.fromkeys(reasons))}, got {one_line(value, 40)}")


def _unknown(path: str, valid: Iterable[str], what: str = "no setting") -> str:
    return f"{what} of the configuration{did_you_mean(path, valid)}"


@cache
def _annotations() -> dict[str, list[Any]]:
    """What each setting can be, by its dotted path; models may have different settings of one name."""
    found: dict[str, list[Any]] = {}
    for each in file_settings_of(TrainConfig):
        annotation = Annotated[each.field.annotation, each.field]  # type: ignore[name-defined]
        found.setdefault(each.name, []).append(annotation)
    return found


@cache
def _adapter(path: str, at: int) -> TypeAdapter[Any]:
    return TypeAdapter(_annotations()[path][at])


@cache
def _schedules() -> tuple[str, ...]:
    names = _annotations()
    return tuple(
        name.removesuffix(".num_stages")
        for name in names
        if name.endswith(".num_stages") and f"{name.removesuffix('.num_stages')}.start" in names
    )


@cache
def _derived() -> tuple[str, ...]:
    """Properties of groups, such as masking.strategy, by their dotted path."""
    found = []
    config = TrainConfig()
    for name in ("", "masking", "teacher"):
        group = type(getattr(config, name)) if name else TrainConfig
        for key, value in vars(group).items():
            if isinstance(value, property) and not key.startswith("_"):
                found.append(f"{name}.{key}" if name else key)
    return tuple(found)


def _ask(asks: list[_Ask], space: Space) -> None:
    for path, entry, inner in asks:
        if path == KEEP:
            space.keep_at_least(entry)
            continue
        found = getattr(entry, entry.verb)
        options = list(inner) if inner else found
        answer = None
        match entry.verb:
            case "uniform":
                space.uniform(path, *found, log=entry.log)
            case "integer":
                space.integer(path, *found, log=entry.log)
            case "schedule":
                space.schedule(path, *found, log=entry.log, kinds=entry.kinds or SCHEDULE_KINDS)
            case "choice":
                answer = space.choice(path, options)
            case "branch":
                answer = space.branch(path, options)
            case "fix":
                space.fix(path, found)
        if inner:
            _ask(inner[answer], space)
