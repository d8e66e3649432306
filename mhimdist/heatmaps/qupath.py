"""Scores as GeoJSON that QuPath opens: a tile per patch with its class and measurements.

QuPath 0.4 and later write and read features like these: the id is a UUID, `objectType` says what becomes of
it, `classification` has a name and a colour, and `measurements` maps names to numbers. Coordinates are pixels
of level 0.

Dimensions: N patches of a slide.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np

from mhimdist import files
from mhimdist.errors import DataError
from mhimdist.foreign_text import qupath_class
from mhimdist.heatmaps import colours
from mhimdist.heatmaps.places import Places
from mhimdist.heatmaps.raster import percentiles
from mhimdist.heatmaps.scores import Scores

_NAMESPACE = UUID("6f0c1a52-95c4-5b0e-9d0b-0c9f6f3c7d11")
_DECIMALS = 4


def write(path: Path, scores: Scores, places: Places, *, model: str, min_percentile: float = 0.0) -> int:
    """Write the patches of a slide, one at a time, whole or not at all; returns how many.

    A patch's class is its most probable one. If the model defines no probability of a patch, the class is the
    tenth of the slide's patches that the patch's attention is in.

    Args:
        path: the file.
        scores: the scores of the slide.
        places: where its patches lie.
        model: a name that tells the ids of two models on one slide apart.
        min_percentile: leave out patches below this percentile of attention, in [0, 100]; without attention,
            of the probability of the predicted class.

    Raises:
        DataError: coordinates are micrometres, and the size of a pixel is unknown.
        DiskFullError: the file does not fit on the disk.
    """
    if places.unit != "px":
        raise DataError(
            f"slide {scores.about.slide!r} has coordinates in µm, and QuPath wants pixels: give "
            "--slides or --mpp"
        )
    part = path.with_name(f".{path.name}.part")
    number = 0
    try:
        with files.full_disk(path):
            with part.open("w", encoding="utf-8") as file:
                file.write('{"type":"FeatureCollection","features":[')
                for number, feature in enumerate(_features(scores, places, model, min_percentile), start=1):
                    file.write(",\n" if number > 1 else "\n")
                    file.write(json.dumps(feature, separators=(",", ":"), allow_nan=False))
                file.write("\n]}\n")
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return number


def ranked_by(scores: Scores) -> tuple[str, np.ndarray]:
    """What patches are ranked by, and its values: attention, else the predicted class's probability."""
    if scores.attention_N is not None:
        return "attention", scores.attention_N
    name = scores.about.predicted
    if name is None or name not in scores.probability_N:
        name = next(iter(scores.probability_N))
    return f"probability of {name}", scores.probability_N[name]


def _features(
    scores: Scores, places: Places, model: str, min_percentile: float
) -> Iterator[dict[str, object]]:
    name, ranked_N = ranked_by(scores)
    percentile_N = percentiles(ranked_N)
    arrays: dict[str, np.ndarray] = {name: ranked_N, f"{name} percentile": percentile_N}
    if scores.teacher_attention_N is not None:
        arrays["teacher attention"] = scores.teacher_attention_N
        arrays["teacher attention percentile"] = percentiles(scores.teacher_attention_N)
    arrays |= {f"probability of {each}": values_N for each, values_N in scores.probability_N.items()}
    if scores.instance_labels_N is not None:
        arrays["instance label"] = scores.instance_labels_N
    columns = {key: values_N.tolist() for key, values_N in arrays.items()}
    classes = _classifications(scores, percentile_N)
    # Attention of 45,000 patches is about 2e-5, so digits count, not decimals.
    for index in np.flatnonzero(percentile_N >= min_percentile).tolist():
        yield {
            "type": "Feature",
            "id": str(uuid5(_NAMESPACE, f"{model}\n{scores.about.slide}\n{index}")),
            "geometry": {"type": "Polygon", "coordinates": [_ring(places.corners_N2[index], places.edge)]},
            "properties": {
                "objectType": "tile",
                "classification": classes[index],
                "measurements": {key: _short(values[index]) for key, values in columns.items()},
            },
        }


def _classifications(scores: Scores, percentile_N: np.ndarray) -> Sequence[dict[str, object]]:
    if scores.probability_N:
        names = list(scores.probability_N)
        likeliest_N = np.stack(list(scores.probability_N.values())).argmax(0)
        places = [scores.about.classes.index(name) for name in names]
        made = [
            {"name": qupath_class(name), "color": colours.rgb_of_class(place)}
            for name, place in zip(names, places, strict=True)
        ]
        return [made[index] for index in likeliest_N]
    tenth_N = np.minimum(percentile_N // 10, 9).astype(int)
    made = [
        {"name": f"attention {10 * tenth}-{10 * tenth + 10} %", "color": colours.rgb_of_share(tenth / 9)}
        for tenth in range(10)
    ]
    return [made[index] for index in tenth_N]


def _ring(corner_2: np.ndarray, edge: float) -> list[list[float]]:
    """A closed ring around a square, counterclockwise as GeoJSON wants it if y counts upward."""
    left, top, right, bottom = (_pixel(value) for value in (*corner_2, *(corner_2 + edge)))
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def _pixel(value: float) -> float:
    return int(value) if value == int(value) else round(float(value), 2)


def _short(value: float) -> float:
    return float(f"{value:.{_DECIMALS}g}")
