"""Writes the file that repeats a sweep into its folder."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mhimdist import files
from mhimdist.config.commented import heading
from mhimdist.config.repeated import REPEAT_FILE, repeated
from mhimdist.data.remote import shown
from mhimdist.search.options import Sweep
from mhimdist.search.proposals import Facts
from mhimdist.search.space import SpaceFunction
from mhimdist.search.space_text import lines_of, untold
from mhimdist.search.traced_space import traced
from mhimdist.search.written_space import WrittenSpace


def write_repeat(sweep: Sweep, space: SpaceFunction, facts: Facts) -> None:
    """Write the file that repeats a sweep.

    A space that is a function is written as data where data can say it; otherwise the file names it.

    Args:
        sweep: the options.
        space: the search space.
        facts: about the space.
    """
    tree = space.tree if isinstance(space, WrittenSpace) else traced(space, sweep.train, facts)
    lines = untold(facts.digest, source_of(space)) if tree is None else _section(tree, facts.digest)
    text = repeated(sweep, "tune", shown={"data": shown(sweep.data)}, sections={"Training": lines})
    files.write_text(sweep.folder / REPEAT_FILE, text)


def _section(tree: Mapping[str, Any], digest: str) -> list[str]:
    return [*heading("Search space"), f"# digest {digest}", "space:", *lines_of(tree)]


def source_of(space: SpaceFunction) -> str:
    """Where a function is, in words: `space` in tune.py."""
    name = getattr(space, "__qualname__", type(space).__name__)
    try:
        file = inspect.getsourcefile(inspect.unwrap(space))
    except TypeError:
        file = None
    return f"`{name}` in {Path(file).name}" if file else f"`{name}`"
