"""A space that is a function, as the data of a file's section `space`, where data can say it.

The function is asked with every answer to its choices, and what it asks after each of them becomes the data.
The result counts only if its draws are the function's: a space that computes with numbers that it has drawn,
or requires something of its own, is not data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mhimdist.config.train import TrainConfig
from mhimdist.errors import MhimdistError
from mhimdist.search.proposals import Facts, draws_alike
from mhimdist.search.space import SCHEDULE_KINDS, Requirement, Space, SpaceFunction
from mhimdist.search.written_space import KEEP, WrittenSpace

MOST_CALLS = 300
"""Calls of the function; a space with more combinations of choices is not traced."""

_Step = tuple[str, str, tuple[tuple[str, Any], ...], tuple[Any, ...]]
"""Path, verb, arguments as pairs, and the choices if an answer may decide what follows."""


class _TooManyError(Exception):
    """The space has too many combinations, or does what data cannot say."""


class _Recorder(Space):
    """Writes down what a space asks."""

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__(_Answers())
        self._answers, self._num_asked = list(answers), 0
        self.steps: list[_Step] = []
        self._is_inside = False

    def uniform(self, path: str, low: float, high: float, *, log: bool = False) -> float:
        """See `Space.uniform`."""
        return self._range("uniform", path, low, high, log, super().uniform(path, low, high, log=log))

    def integer(self, path: str, low: int, high: int, *, log: bool = False) -> int:
        """See `Space.integer`."""
        return self._range("integer", path, low, high, log, super().integer(path, low, high, log=log))

    def _range(self, verb: str, path: str, low: Any, high: Any, log: bool, answer: Any) -> Any:
        if not self._is_inside:
            given = ((verb, (low, high)), *((("log", True),) if log else ()))
            self.steps.append((path, verb, given, ()))
        return answer

    def choice(self, path: str, options: Sequence[Any]) -> Any:
        """See `Space.choice`."""
        self.changes[path] = self._answer("choice", path, options)
        return self.changes[path]

    def branch(self, path: str, options: Sequence[str]) -> str:
        """See `Space.branch`."""
        return str(self._answer("branch", path, options))

    def _answer(self, verb: str, path: str, options: Sequence[Any]) -> Any:
        if self._is_inside:
            return options[0]
        number = self._num_asked
        self._num_asked += 1
        self.steps.append((path, verb, ((verb, tuple(options)),), tuple(options)))
        return self._answers[number] if number < len(self._answers) else options[0]

    def schedule(
        self, path: str, low: float, high: float, *, log: bool = False, kinds: Sequence[str] = SCHEDULE_KINDS
    ) -> None:
        """See `Space.schedule`."""
        given: list[tuple[str, Any]] = [("schedule", (low, high))]
        given += [("log", True)] if log else []
        given += [("kinds", tuple(kinds))] if tuple(kinds) != SCHEDULE_KINDS else []
        self.steps.append((path, "schedule", tuple(given), ()))
        self._is_inside = True
        super().schedule(path, low, high, log=log, kinds=kinds)
        self._is_inside = False

    def fix(self, path: str, value: Any) -> None:
        """See `Space.fix`."""
        self.steps.append((path, "fix", (("fix", value),), ()))
        super().fix(path, value)

    def require(self, is_met: Any, text: str) -> None:
        """See `Space.require`, which no data can say."""
        raise _TooManyError

    def keep_at_least(self, share: float) -> None:
        """See `Space.keep_at_least`."""
        self.steps.append((KEEP, KEEP, ((KEEP, share),), ()))
        self.requirements.append(Requirement(lambda config: True, ""))


class _Answers:
    """Answers ranges in their middle; choices are answered by the recorder."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return (low * high) ** 0.5 if log else (low + high) / 2

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return (low + high) // 2

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[0]


class _Tracer:
    """Calls a function again and again, with other answers to its choices."""

    def __init__(self, space: SpaceFunction) -> None:
        self._space, self._num_calls = space, 0

    def tree(self) -> dict[str, Any]:
        return self._data(self._steps([]), [])

    def _steps(self, answers: Sequence[Any]) -> list[_Step]:
        self._num_calls += 1
        if self._num_calls > MOST_CALLS:
            raise _TooManyError
        recorder = _Recorder(answers)
        self._space(recorder)
        return recorder.steps

    def _data(self, steps: list[_Step], answers: list[Any], start: int = 0, end: int = 0) -> dict[str, Any]:
        """The data of the steps from one on; the last `end` of them are said by whoever called."""
        found: dict[str, Any] = {}
        steps = steps[: len(steps) - end]
        at = start
        while at < len(steps):
            path, verb, given, options = steps[at]
            if path in found:
                raise _TooManyError
            if verb == KEEP:
                found[path] = given[0][1]
            else:
                found[path] = {
                    name: list(value) if isinstance(value, tuple) else value for name, value in given
                }
            at += 1
            if not options:
                continue
            ways = {option: self._steps([*answers, option]) for option in options}
            tails = [tuple(map(repr, way[at:])) for way in ways.values()]
            if len(set(tails)) == 1:
                answers = [*answers, options[0]]
                continue
            common = _common_end(tails)
            # What the ways share at their end is said once, behind this choice.
            found[path][verb] = {
                option: self._data(way, [*answers, option], at, common) for option, way in ways.items()
            }
            rest = ways[options[0]]
            inner = [step for step in rest[at : len(rest) - common] if step[3]]
            if any(step[3] for step in rest[len(rest) - common :]):
                # The answers within a way differ in number, so the end is traced behind the first way.
                answers = [*answers, options[0], *(step[3][0] for step in inner)]
            steps, at = rest[: len(rest) - end], len(rest) - common
        return found


def _common_end(tails: Sequence[Sequence[str]]) -> int:
    length = 0
    while all(len(tail) > length for tail in tails) and len({tail[-1 - length] for tail in tails}) == 1:
        length += 1
    return length


def traced(space: SpaceFunction, base: TrainConfig, facts: Facts) -> dict[str, Any] | None:
    """The data that say what a function says; None if data cannot say it.

    Args:
        space: the function.
        base: the configuration that it changes.
        facts: about the space.
    """
    try:
        tree = _Tracer(space).tree()
        written = WrittenSpace(_with_text_keys(tree))
        return written.tree if draws_alike(written, base, facts) else None
    except (_TooManyError, MhimdistError):
        return None
    except Exception:  # the function's own, for answers that no trial would give
        return None


def _with_text_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, entry in tree.items():
        if isinstance(entry, dict):
            entry = {
                verb: {_text(key): _with_text_keys(below) for key, below in value.items()}
                if isinstance(value, dict) and verb in ("choice", "branch")
                else value
                for verb, value in entry.items()
            }
        found[path] = entry
    return found


def _text(key: Any) -> str:
    return (
        {None: "none", True: "true", False: "false"}.get(key, str(key)) if not isinstance(key, str) else key
    )
