"""The classes that labels name: their order, spellings of one class, and labels that are no classes."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.tables.labels import SlideLabel
from mhimdist.errors import LabelError
from mhimdist.tables.names import composed

_FEW_CLASSES = 10
"""Fewer classes are not too many, unless they are numbers or dates."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_DATE = re.compile(
    r"[0-9]{4}[-./][0-9]{1,2}[-./][0-9]{1,2}([T ][0-9:.]+Z?)?|[0-9]{1,2}[-./][0-9]{1,2}[-./][0-9]{2,4}"
    r"|[0-9]{1,2}[- ][A-Za-z]{3}[- ][0-9]{2,4}"
)
_MEASURED = re.compile(
    rf"{_DATE.pattern}|[<>≤≥~]? ?[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)(e[+-]?[0-9]+)? ?[%‰]?", re.IGNORECASE
)
"""A date, a percentage, or a number that is not written plainly, such as <0.1 or 1e-5."""


def class_order(labels: Sequence[SlideLabel], classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """The classes in the order of their indices: as given; otherwise by number if all are, or by name.

    Raises:
        LabelError: a slide's label is not among the given classes, a class is named twice, or two labels are
            the same number or differ only in case and spaces.
    """
    names = {row.label for row in labels}
    if classes is None:
        numeric = all(map(_NUMBER.fullmatch, names))
        if numeric and len(set(map(float, names))) < len(names):
            by_number: dict[float, list[str]] = {}
            for name in sorted(names):
                by_number.setdefault(float(name), []).append(name)
            one, *others = next(spellings for spellings in by_number.values() if len(spellings) > 1)
            renames = ",".join(f"{name}={one}" for name in others)
            raise LabelError(
                f"labels that are the same number are written in different ways: {sorted(names)}; "
                f"--class-map {renames!r} makes them one class"
            )
        _refuse_spellings(names)
        return tuple(sorted(names, key=float) if numeric else sorted(names))
    if len(set(classes)) < len(classes) or not all(classes):
        raise LabelError(f"expected class names that differ and are not empty, got {list(classes)}")
    for row in labels:
        if row.label not in classes:
            raise LabelError(f"slide {row.slide!r} has label {row.label!r}, expected {' or '.join(classes)}")
    return tuple(classes)


def spelled_as(labels: Sequence[SlideLabel], classes: Sequence[str]) -> list[SlideLabel]:
    """The rows, with labels that are a class written as the class is: the number "1" as "1.0"."""
    by_name = {composed(name): name for name in classes}
    by_number = {float(name): name for name in classes if _NUMBER.fullmatch(name)}

    def spelled(label: str) -> str:
        if label in by_name or not _NUMBER.fullmatch(label):
            return by_name.get(label, label)
        return by_number.get(float(label), label)

    return [replace(row, label=spelled(row.label)) for row in labels]


def refuse_measurements(labels: Sequence[SlideLabel], path: Path) -> None:
    """Refuse labels that are measurements, dates or names, because too many of them differ, and no classes.

    A case with several slides of one label counts once. Refused are:

    - ten or more classes of fewer than two cases each on average;
    - so few cases each for three or more decimals, percentages and dates, or for five or more whole numbers
      above 10 or below 0;
    - ten or more numbers or dates of fewer than ten cases each on average, unless they are 0, 1, 2, ... or
      1, 2, 3, ... without a gap.

    Args:
        labels: the slides.
        path: the table, for the message.

    Raises:
        LabelError: the labels are like this.
    """
    said = [label for _, label in {(row.case, row.label) for row in labels}]
    counts = Counter(said)
    numbers = {float(name) for name in counts if _NUMBER.fullmatch(name)}
    measured = [name for name in counts if _NUMBER.fullmatch(name) or _MEASURED.fullmatch(name)]
    fine = sum(not _NUMBER.fullmatch(name) or not float(name).is_integer() for name in measured)
    large = sum(number.is_integer() and not 0 <= number <= 10 for number in numbers)
    gapless = [set(map(float, range(first, first + len(counts)))) for first in (0, 1)]
    is_measured = len(measured) == len(counts) and not (fine == 0 and numbers in gapless)
    ten = len(counts) >= _FEW_CLASSES
    many = ten or (is_measured and (fine >= 3 or large >= 5))
    cases_each = 10 if ten and is_measured else 2
    if not many or cases_each * len(counts) <= len(said):
        return
    what = "case" if len(said) < len(labels) else "slide"
    single = sum(count == 1 for count in counts.values())
    only_numbers = not any(map(_DATE.fullmatch, counts)) and len(measured) == len(counts)
    guess = (
        "is this survival or regression? Then give --task."
        if only_numbers
        else "is this a column of names or dates?"
    )
    raise LabelError(
        f"{path}: {len(counts)} classes of {len(said)} {what}s, {single} of them with one {what} each "
        f"({', '.join(sorted(counts)[:3])}, ...): {guess} Name the column of classes with --label-column, or "
        "the classes with --classes"
    )


def _refuse_spellings(names: set[str]) -> None:
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        key = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", name.casefold().replace("_", " "))
        alike.setdefault(key, []).append(name)
    groups = [spellings for spellings in alike.values() if len(spellings) > 1]
    if groups:
        renames = ",".join(f"{name}={first}" for first, *others in groups for name in others)
        said = ", and labels ".join(" and ".join(map(repr, spellings)) for spellings in groups)
        raise LabelError(
            f"labels {said} differ only in case or spaces: --class-map {renames!r} makes them one class; "
            "--classes with each of them keeps them apart"
        )
