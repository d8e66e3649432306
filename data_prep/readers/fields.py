"""What is kept of a bag, and under which names files hold it: the one table of them, for all readers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

FEATURES = ("features", "feats", "embeddings")
"""The array of features: CLAM and TRIDENT, STAMP, and scripts of many."""

SIDE_ARRAYS = ("coords", "instance_labels")

DETAILS: dict[str, tuple[type, tuple[str, ...]]] = {
    "encoder": (str, ("encoder", "extractor")),
    "patch_size": (int, ("patch_size", "tile_size_px")),
    "level": (int, ("patch_level", "level")),
    "magnification": (float, ("target_magnification", "magnification")),
    "coords_unit": (str, ("coords_unit", "unit")),
}
"""What is kept of a bag's making, with its type and names in files: the encoder's name, the edge of a patch
in pixels, the level of the slide's pyramid, the magnification, and the unit of the coordinates ("um" for
STAMP's, else pixels of level 0)."""


def describe(found: Mapping[Any, Any]) -> dict[str, Any]:
    """Those of `DETAILS` that attributes, or entries beside arrays, say under any of their names."""
    details = {}
    for name, (kind, names) in DETAILS.items():
        values = (_as(kind, found[other]) for other in names if other in found)
        if (value := next((value for value in values if value is not None), None)) is not None:
            details[name] = value
    return details


def _as(kind: type, value: object) -> Any:
    """A detail in its type, None if it is not of it: attributes of files come in many."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if kind is str:
        # TRIDENT writes the text "None" of an encoder without a name.
        return value if isinstance(value, str) and value not in ("", "None") else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return kind(value) if value == value and abs(value) < 2**31 and kind(value) == value else None
