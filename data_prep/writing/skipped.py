"""Bags that are left out because they cannot be used, and the table of them next to the manifest."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mhimdist import files
from mhimdist.errors import DataError
from mhimdist.foreign_text import csv_text, of_cell
from mhimdist.tables.columns import Kind, require
from mhimdist.tables.reading import read_table

SKIPPED_NAME = "skipped.csv"
MAX_NAMED = 10


@dataclass(frozen=True, order=True)
class BadBag:
    """A slide whose features cannot be used, and why; the reason names the file."""

    slide: str
    reason: str


def named(bad: Sequence[BadBag], limit: int = MAX_NAMED) -> str:
    """The first few reasons for a message, each once with its number of slides, and that of further ones."""
    counts = Counter(bag.reason for bag in bad)
    said = [f"{reason} ({count:,} slides)" if count > 1 else reason for reason, count in counts.items()]
    num_more = sum(list(counts.values())[limit:])
    return "; ".join(said[:limit]) + (f"; and {num_more:,} more" if num_more else "")


def read_skipped(folder: Path) -> list[BadBag]:
    """The bags that were left out of a data set; an empty list if it has no such table.

    Raises:
        DataError: the table was changed and cannot be read.
    """
    if not (folder / SKIPPED_NAME).exists():
        return []
    table = read_table(folder / SKIPPED_NAME, header_alone=True)
    slide, reason = (require(table, Kind(name, (name,)), error=DataError) for name in ("slide", "reason"))
    return [BadBag(of_cell(cells[slide]), of_cell(cells[reason])) for _, cells in table.rows]


def write_skipped(folder: Path, bad: Iterable[BadBag], slides: Collection[str]) -> None:
    """List bags in a data set's table, with those of earlier runs that have not been added since.

    Args:
        folder: folder of the data set.
        bad: bags that this run left out.
        slides: slides that the data set holds.
    """
    known = {bag.slide: bag for bag in read_skipped(folder)} | {bag.slide: bag for bag in bad}
    left = sorted(bag for bag in known.values() if bag.slide not in slides)
    if not left:
        (folder / SKIPPED_NAME).unlink(missing_ok=True)
        return
    text = csv_text(("slide", "reason"), [(bag.slide, bag.reason) for bag in left])
    files.write_text(folder / SKIPPED_NAME, text)
