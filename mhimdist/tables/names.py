"""Names of slides as tables and files write them: which are joined without asking, which only pointed out.

A table's name and a file's name are the same slide if they differ by folders, suffixes, spaces around
them, the way that letters with accents are stored, or the ".0" that spreadsheets add to numbers, and if no
second slide could be meant. Zeros lost in front, upper and lower case, and parts of names are never guessed.
A message names them.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence

from mhimdist.tables.cells import ZERO_WIDTH

SLIDE_SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".czi", ".scn", ".vms", ".vsi", ".bif", ".dcm", ".qptiff"),
    *(".isyntax", ".ome", ".jpg", ".jpeg", ".png"),
    *(".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".zarr", ".csv"),
)
_NUM_EXAMPLES = 2
_ROUNDED = re.compile(r"[0-9](?:[.,][0-9]+)?E\+[0-9]+", re.IGNORECASE)
"""A long number as spreadsheets show it: 1.23457E+11."""


def composed(name: str) -> str:
    """A name with each accent in its letter (NFC), and without characters of no width.

    macOS and some exports store accents apart; web pages and PDFs put zero-width spaces into copied names.
    """
    return unicodedata.normalize("NFC", ZERO_WIDTH.sub("", name))


def alike(names: Iterable[str]) -> list[str]:
    """The first names that differ only in upper and lower case, spaces and stored accents, if any do.

    Spaces between two digits divide numbers, and so count.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        spaced = " ".join(composed(name).casefold().split())
        found.setdefault(re.sub(r"(?<![0-9]) | (?![0-9])", "", spaced), []).append(name)
    return next((spellings for spellings in found.values() if len(spellings) > 1), [])


def bare(name: str) -> str:
    """The name of a slide without its folder, of Linux or Windows, and without its suffixes."""
    name = composed(re.split(r"[/\\]", name.rstrip(" \t/\\"))[-1].strip())
    while end := next((end for end in SLIDE_SUFFIXES if name.lower().endswith(end)), None):
        name = name[: -len(end)].rstrip()
    return name


class KnownNames:
    """Finds the slides that a table means among those that there are.

    Args:
        known: the names of the slides.
    """

    def __init__(self, known: Iterable[str]):
        self._known = frozenset(known)
        self._by_bare_name: dict[str, list[str]] = {}
        for name in sorted(self._known):
            self._by_bare_name.setdefault(bare(name), []).append(name)

    def meant_by(self, name: str) -> list[str]:
        """The slides that a name can mean: none, one, or those between which it does not decide."""
        if name in self._known:
            return [name]
        if found := self._by_bare_name.get(bare(name)):
            return found
        number = re.fullmatch(r"([0-9]+)[.,]0+", bare(name))
        return self._by_bare_name.get(number[1], []) if number else []


def _unpadded(name: str) -> str:
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", name)


_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("upper and lower case; write them alike", str.casefold),
    (
        "zeros in front of numbers, which spreadsheets drop; write the names as text, with their zeros",
        lambda name: _unpadded(re.sub(r"\.0+$", "", name)),
    ),
    (
        "spaces, hyphens, underscores and case; write them alike",
        lambda name: re.sub(r"[\W_]+", "", name.casefold()),
    ),
    ("what follows the first dot; write them alike", lambda name: name.split(".")[0]),
)


def rule_that_joins(missing: Sequence[str], free: Collection[str], what_they_are: str = "slides") -> str:
    """A half sentence for a message: the rule by which names would be those of slides; empty if none is.

    Args:
        missing: names of a table for which there are no slides.
        free: slides that no name of the table means.
        what_they_are: a word for these, in the plural.
    """
    best, most = "", 0
    for what, key in _RULES:
        slides: dict[str, int] = {}
        for name in free:
            slides[key(bare(name))] = slides.get(key(bare(name)), 0) + 1
        keys = [key(bare(name)) for name in missing]
        if (joined := sum(slides.get(each) == 1 == keys.count(each) for each in set(keys))) > most:
            best, most = what, joined
    if 2 * most < len(missing) or not most:
        return ""
    those = "they" if most == len(missing) else f"{most} of them"
    return f"; {those} differ from {what_they_are} only in {best}"


def rounded(names: Iterable[str]) -> str:
    """A half sentence for a message: which names a spreadsheet has rounded; empty if there are none."""
    found = [name for name in names if _ROUNDED.fullmatch(name.strip())]
    if not found:
        return ""
    return f"; a spreadsheet has rounded {examples(found)}: write the names as text, not as numbers"


def affix_that_joins(missing: Sequence[str], free: Collection[str]) -> str:
    """What one side puts before or behind every name, if this is all that keeps names from those of slides.

    Args:
        missing, free: as in `rule_that_joins`.

    Returns:
        Which side, and what: "the names of features have '_patches' behind them"; empty if there is none.
    """
    names, slides = {bare(name) for name in missing}, {bare(name) for name in free}
    for longer, shorter, side in ((slides, names, "features"), (names, slides, "the table")):
        for short in sorted(shorter)[:_NUM_EXAMPLES]:
            for long in sorted(name for name in longer if short and short in name):
                before, behind = long.split(short, 1)
                joined = sum(f"{before}{name}{behind}" in longer for name in shorter)
                if joined and 2 * joined > len(names) and bool(before) != bool(behind):
                    place = f"{before!r} before them" if before else f"{behind!r} behind them"
                    return f"the names of {side} have {place}"
    return ""


def begins_names(missing: Sequence[str], free: Collection[str]) -> bool:
    """Whether most names of a table begin the names of slides, as those of patients do."""
    starts: set[str] = set()
    for name in map(bare, free):
        starts.update(name[: match.start()] for match in re.finditer(r"[\W_]", name))
    return 2 * sum(bare(name) in starts for name in missing) > len(missing)


def examples(names: Iterable[str]) -> str:
    """Two names for a message."""
    return ", ".join(map(repr, sorted(names)[:_NUM_EXAMPLES]))
