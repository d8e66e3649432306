"""torchmil's layout: a slide's features, coordinates and labels stand in one folder each, as .npy files.

In `patches_512` these are `features/features_<encoder>`, `coords`, `patch_labels` and `labels`. Each has one
file per slide, `<slide>.npy`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.readers.arrays import RowReader, map_npy
from data_prep.readers.sources import Source
from mhimdist.errors import DataError

FEATURES, COORDS, INSTANCE_LABELS, LABELS = "features", "coords", "patch_labels", "labels"


def is_folder(folder: Path) -> bool:
    """Whether a folder, such as `patches_512`, is laid out like this."""
    return (folder / FEATURES).is_dir() and _has_arrays(folder / LABELS)


def with_sides(source: Source, slide: str) -> Source:
    """A source of features with the coordinates, instance labels and label that stand in folders beside it.

    Args:
        source: a file in `features/features_<encoder>/`; others are returned as they are.
        slide: its name.

    Raises:
        DataError: the file of the label does not hold one whole number.
    """
    folder = source.path.parent.parent.parent
    if source.family != "npy" or source.path.parent.parent.name != FEATURES or not is_folder(folder):
        return source
    coords, labels, label = (
        path if (path := folder / name / f"{slide}.npy").is_file() else None
        for name in (COORDS, INSTANCE_LABELS, LABELS)
    )
    said = source.said if label is None else (*source.said, ("label", _number_in(label)))
    return replace(source, coords=source.coords or coords, instance_labels=labels, said=said)


def _has_arrays(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("*.npy"), None) is not None


def _number_in(path: Path) -> str:
    """The one number in a file, as the name of a class.

    Raises:
        DataError: it holds something else.
    """
    array = map_npy(path)
    values = array.read(0, sum(array.shape[:1])) if isinstance(array, RowReader) else np.asarray(array)
    is_one = values.size == 1 and values.dtype.kind in "biuf"
    if not is_one or not float(values.item()).is_integer():
        raise DataError(
            f"{path}: expected the label of the slide, one whole number, got {values.dtype} of shape "
            f"{values.shape}"
        )
    return str(int(values.item()))
