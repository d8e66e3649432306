"""Which slides are of one patient: what a table leaves out, and what it costs to leave it out."""

import re
from collections.abc import Sequence
from dataclasses import replace

from data_prep.tables.labels import SlideLabel
from mhimdist.errors import LabelError

_BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])")
"""The patient in a name of The Cancer Genome Atlas, its first 12 characters."""


def cases_of_barcodes(table: Sequence[SlideLabel]) -> list[SlideLabel]:
    """The rows with the patient that a TCGA slide's name begins with as their case.

    Raises:
        LabelError: a name does not begin so, or the table says another case.
    """
    rows = []
    for row in table:
        if (found := _BARCODE.match(row.slide)) is None:
            raise LabelError(f"slide {row.slide!r}: expected a TCGA barcode, TCGA-XX-XXXX and so on")
        if row.case not in (row.slide, found[1]):
            raise LabelError(f"slide {row.slide!r} is of {found[1]!r}, but the table says {row.case!r}")
        rows.append(replace(row, case=found[1]))
    return rows


def missing_cases(table: Sequence[SlideLabel]) -> str | None:
    """What to say of a table in which every slide is a case of its own; None of another."""
    if len(table) < 2 or any(row.case != row.slide for row in table):
        return None
    found = [match[1] for row in table if (match := _BARCODE.match(row.slide))]
    if (patients := len(set(found))) < len(found):
        return (
            f"{len(found):,} slides have names of {patients:,} TCGA patients, but the labels have no cases: "
            "slides of one patient would stand on both sides of a split; give --case-from tcga"
        )
    return (
        f"the labels have no cases: each of the {len(table):,} slides is taken for a patient of its own; if "
        "it is not, add a column `case`, or slides of one patient stand on both sides of a split"
    )
