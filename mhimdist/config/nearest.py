"""The nearest name that exists, for whoever wrote another one."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint at the nearest name, such as " (did you mean --epochs?)"; empty if none is near.

    Args:
        given: the name that is not known.
        known: the names that are.
    """
    names = list(dict.fromkeys(known))
    ends = [name for name in names if name.lstrip("-").rpartition(".")[2] == given.lstrip("-")]
    near = ends[:1] or difflib.get_close_matches(given, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
