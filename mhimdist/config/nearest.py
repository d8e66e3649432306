"""The nearest name that exists, for whoever wrote another one."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint at the nearest name, such as " (did you mean --epochs?)"; empty if none is near.

    Args:
        given: the name that is not known.
        known: the names that are.
    """
    known_as = {_spelt(name): name for name in known}
    wanted = _spelt(given)
    ends = [name for name in known_as if name.lstrip("_").rpartition(".")[2] == wanted.lstrip("_")]
    near = ends[:1] or difflib.get_close_matches(wanted, known_as, n=1)
    return f" (did you mean {known_as[near[0]]}?)" if near else ""


def _spelt(name: str) -> str:
    """A name as Python and files spell it; options have hyphens in the places of underscores."""
    return name.replace("-", "_")
