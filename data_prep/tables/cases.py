"""Cases: which slides are of one patient, and a warning for a table that does not say so."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from data_prep.tables.labels import SlideLabel, refuse_spellings_of_cases
from mhimdist.data.manifest import Manifest
from mhimdist.errors import LabelError
from mhimdist.tables.names import KnownNames, bare

_BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])")
"""The patient in a slide name of The Cancer Genome Atlas: its first 12 characters."""
_MOST_NAMED = 20
"""So many columns are named in a warning."""
_SAMPLE = re.compile(_BARCODE.pattern + r"-[0-9]{2}")


def cases_of_barcodes(table: Sequence[SlideLabel]) -> list[SlideLabel]:
    """The rows, with the TCGA patient that each slide's name begins with as the case.

    Raises:
        LabelError: a name does not begin with a TCGA barcode, or the table states another case.
    """
    rows = []
    for row in table:
        if (found := _BARCODE.match(row.slide)) is None:
            raise LabelError(f"slide {row.slide!r}: expected a TCGA barcode (TCGA-XX-XXXX) to begin its name")
        if row.case not in (row.slide, found[1]):
            raise LabelError(
                f"slide {row.slide!r}: expected the case {found[1]!r} as in its name, but the table says "
                f"{row.case!r}"
            )
        rows.append(replace(row, case=found[1]))
    return rows


def slides_of_barcodes(names: Iterable[str], known: Collection[str]) -> dict[str, list[str]]:
    """The slides that each name means: those that begin with it, if it is the barcode of a case or sample.

    Args:
        names: the names of slides, cases or samples.
        known: the slides that there are.

    Returns:
        The slides by name; a name that means none, or is no barcode, stands for itself.
    """
    of_case: dict[str, list[str]] = {}
    for slide in sorted(known):
        if found := _BARCODE.match(bare(slide).upper()):
            of_case.setdefault(found[1], []).append(slide)
    slides, meant = KnownNames(known), {}
    for name in names:
        found = _BARCODE.match(name.upper())
        # cBioPortal names samples without the letter of the vial: TCGA-XX-XXXX-01.
        vial = "[A-Z]?" if _SAMPLE.fullmatch(name.upper()) else ""
        begins = re.compile(re.escape(name.upper()) + vial + r"(?![A-Z0-9])")
        spread = (
            [slide for slide in of_case.get(found[1], []) if begins.match(bare(slide).upper())]
            if found
            else []
        )
        meant[name] = [name] if slides.meant_by(name) else spread or [name]
    return meant


def of_the_same_cases(names: Iterable[str], slides: Iterable[str]) -> bool:
    """Whether the names have the barcodes of TCGA cases of which there are slides, all of them."""
    known = {found[1] for slide in slides if (found := _BARCODE.match(bare(slide).upper()))}
    return all((found := _BARCODE.match(name.upper())) and found[1] in known for name in names)


def refuse_spellings(table: Sequence[SlideLabel], before: Manifest | None) -> None:
    """Refuse cases whose names are nearly the same, in the table or in the data set that it is added to.

    Raises:
        LabelError: two cases differ only in upper and lower case and spaces.
    """
    where_of = dict.fromkeys(before.rows["case"].to_pylist(), "in the data set") if before else {}
    if any(row.case != row.slide for row in table) or where_of:
        refuse_spellings_of_cases({row.case: row.where for row in reversed(table)} | where_of)


def missing_cases(table: Sequence[SlideLabel], others: Sequence[str] = ()) -> str | None:
    """A warning for a table in which every slide is its own case; None for any other table.

    Args:
        table: the labels.
        others: the table's columns that are neither slide nor label.
    """
    if len(table) < 2 or any(row.case != row.slide for row in table):
        return None
    found = [match[1] for row in table if (match := _BARCODE.match(row.slide))]
    if (patients := len(set(found))) < len(found):
        return (
            f"the names of {len(found):,} slides are of {patients:,} TCGA patients, but the labels have no "
            "cases, so slides of one patient can be on both sides of a split; give --case-from tcga"
        )
    way = "add a column `case`"
    if others:
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        named = ", ".join(map(repr, others[:_MOST_NAMED])) + more
        way = f"name their column with --case-column (the table also has {named}), or {way}"
    return (
        f"the labels have no cases, so each of the {len(table):,} slides counts as its own patient; if some "
        f"are of the same patient, {way}, otherwise they can be on both sides of a split"
    )
