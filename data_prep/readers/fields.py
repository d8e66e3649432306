"""The fields kept of a bag, and their names in files: one table for all readers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

FEATURES = ("features", "feats", "embeddings")
"""Names of the array of features: in CLAM and TRIDENT, in STAMP, and in many scripts."""

SIDE_ARRAYS = ("coords", "instance_labels")

DETAILS: dict[str, tuple[type, tuple[str, ...]]] = {
    "encoder": (str, ("encoder", "extractor")),
    "patch_size": (int, ("patch_size", "tile_size_px")),
    "level": (int, ("patch_level", "level")),
    "magnification": (float, ("target_magnification", "magnification")),
    "coords_unit": (str, ("coords_unit", "unit")),
}
"""How a bag was made, as far as it is kept; each detail with its type and its names in files: the encoder's
name, the edge of a patch in pixels, the level of the slide's pyramid, the magnification, and the unit of the
coordinates ("um" in STAMP's files, otherwise pixels of level 0)."""

NAMES_OF_DETAILS = frozenset(name for _, names in DETAILS.values() for name in names)
"""The names of all `DETAILS` in files."""


def describe(found: Mapping[Any, Any]) -> dict[str, Any]:
    """The `DETAILS` that attributes, or entries next to arrays, hold under any of their names."""
    details = {}
    for name, (kind, names) in DETAILS.items():
        values = (_as(kind, found[other]) for other in names if other in found)
        if (value := next((value for value in values if value is not None), None)) is not None:
            details[name] = value
    return details


def _as(kind: type, value: object) -> Any:
    """A detail in its type, None if the value does not fit: files store attributes in many types."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if kind is str:
        # TRIDENT writes the text "None" for an encoder without a name.
        return value if isinstance(value, str) and value not in ("", "None") else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return kind(value) if value == value and abs(value) < 2**31 and kind(value) == value else None
