"""The classes that labels name: their order, spellings of one class, and labels that are no classes."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.tables.labels import SlideLabel
from mhimdist.errors import LabelError

_FEW_CLASSES = 10
"""So many classes are never too many, unless they are numbers with decimals."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")


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
    """The rows, with labels that are the number of a class written as the class is: "1" as "1.0"."""
    by_number = {float(name): name for name in classes if _NUMBER.fullmatch(name)}

    def spelled(label: str) -> str:
        if label in classes or not _NUMBER.fullmatch(label):
            return label
        return by_number.get(float(label), label)

    return [replace(row, label=spelled(row.label)) for row in labels]


def refuse_measurements(labels: Sequence[SlideLabel], path: Path) -> None:
    """Refuse labels of which nearly every one is another: a measurement, a date or a name, and no class.

    If no case has two labels, such as its survival, each case counts once, whatever its number of slides.

    Raises:
        LabelError: there are more than half as many classes as slides or cases; or the classes are many
            numbers, and most of them are those of a single one.
    """
    of_case = {row.case: row.label for row in labels}
    by_case = all(of_case[row.case] == row.label for row in labels)
    said = list(of_case.values()) if by_case else [row.label for row in labels]
    counts = Counter(said)
    numeric = all(map(_NUMBER.fullmatch, counts))
    whole = numeric and all(float(name).is_integer() for name in counts)
    few = 3 if numeric and not whole else _FEW_CLASSES
    alone = sum(count == 1 for count in counts.values())
    mostly_alone = numeric and len(counts) >= _FEW_CLASSES and 2 * alone > len(counts)
    if len(counts) < few or (2 * len(counts) <= len(said) and not mostly_alone):
        return
    what = "case" if len(said) < len(labels) else "slide"
    guess = "is this survival or regression?" if numeric else "is this a column of names?"
    raise LabelError(
        f"{path}: {len(counts)} classes of {len(said)} {what}s, {alone} of them with one {what} each "
        f"({', '.join(sorted(counts)[:3])}, ...): {guess} Name the column of classes with --label-column, or "
        "the classes with --classes"
    )


def _refuse_spellings(names: set[str]) -> None:
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        key = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", name.casefold().replace("_", " "))
        alike.setdefault(key, []).append(name)
    for spellings in alike.values():
        if len(spellings) > 1:
            first, *others = spellings
            renames = ",".join(f"{name}={first}" for name in others)
            raise LabelError(
                f"labels {' and '.join(map(repr, spellings))} differ only in case or spaces: "
                f"--class-map {renames!r} makes them one class; --classes with each of them keeps them apart"
            )
