"""Where the patches of a slide lie: corners and edge, in pixels of level 0 or in micrometres.

Dimensions: N patches of a slide, 2 the coordinates x and y.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from mhimdist.errors import DataError
from mhimdist.heatmaps.scores import Scores
from mhimdist.heatmaps.slides import Region, Slide

MICROMETRES = ("um", "µm", "μm", "micron", "microns")


@dataclass(frozen=True, eq=False)
class Places:
    """The patches of a slide as squares.

    Attributes:
        corners_N2: float64, N x 2, upper left corner of each patch.
        edge: edge of a patch.
        step: distance between neighbours; less than the edge if patches overlap.
        unit: "px", pixels of level 0, or "um".
        mpp: micrometres per unit; None if unknown.
        notes: how the edge was found, in words.
    """

    corners_N2: np.ndarray
    edge: float
    step: float
    unit: str
    mpp: float | None
    notes: tuple[str, ...] = field(default=())

    @property
    def extent(self) -> Region:
        """The smallest rectangle that holds all patches."""
        low_2, high_2 = self.corners_N2.min(0), self.corners_N2.max(0) + self.edge
        return Region(*low_2, *(high_2 - low_2))


def places_of(
    scores: Scores, slide: Slide | None, *, mpp: float | None = None, edge: float | None = None
) -> Places:
    """Find the patches' corners and edge.

    The edge comes from the first of these that is known: `edge`; patch size x downsample of the level (level
    0, or the slide is given); patch size x magnification of the slide's level 0 / magnification of the
    patches; the most frequent distance of neighbours in a row or column.

    Args:
        scores: the scores of the slide.
        slide: the slide, if it is given.
        mpp: micrometres per pixel of level 0, which overrides what the slide says.
        edge: edge of a patch in pixels of level 0, which overrides what can be found out.

    Raises:
        DataError: there are no coordinates, the edge cannot be found, or the patches do not fit the slide.
    """
    about = scores.about
    if scores.coords_N2 is None:
        raise DataError(
            f"slide {about.slide!r} has no coordinates, so it has no map: predict on features with "
            "coordinates, or shard again without --drop-coords"
        )
    corners_N2 = scores.coords_N2
    mpp = mpp or (slide.mpp if slide else None)
    step, notes = _step(corners_N2), []
    is_um = (about.coords_unit or "").lower() in MICROMETRES
    if is_um and mpp is None and slide is not None:
        raise DataError(
            f"slide {about.slide!r}: its coordinates are micrometres, and {slide.path} does not say how many "
            "a pixel has; give --mpp"
        )
    if is_um and mpp is not None:
        corners_N2, step = corners_N2 / mpp, step and step / mpp
        notes.append(f"coordinates from µm, {mpp:g} µm per pixel")
    unit = "um" if is_um and mpp is None else "px"
    if edge is not None:
        notes.append(f"patch edge {edge:g} px, as given")
    elif found := None if is_um else _edge_of_level(scores, slide):
        edge, note = found
        notes.append(note)
    elif step is None:
        raise DataError(
            f"slide {about.slide!r}: the edge of its {len(corners_N2)} patches is unknown, since no two are "
            "neighbours; give --patch-edge"
        )
    else:
        edge = step
        notes.append(f"patch edge {edge:,.5g} {_name(unit)}, inferred from the step of the coordinates")
    if unit == "um":
        notes.append("drawn in µm: pixels of the slide are unknown")
    step = min(step or edge, edge)
    if step < 0.99 * edge:
        notes.append(f"patches overlap (step {step:,.5g}): mean of those that cover a pixel")
    places = Places(corners_N2, edge, step, unit, 1.0 if unit == "um" else mpp, tuple(notes))
    if slide is not None:
        _check(places, slide, about.slide)
    return places


def _name(unit: str) -> str:
    return "µm" if unit == "um" else "px"


def _edge_of_level(scores: Scores, slide: Slide | None) -> tuple[float, str] | None:
    """The edge in pixels of level 0 from how patches were cut, with a note; None if too little is known."""
    about = scores.about
    size = about.patch_size
    if size is None:
        return None
    if about.level == 0:
        return float(size), f"patch edge {size} px at level 0"
    if slide is None:
        return None
    if about.level is not None:
        if about.level >= len(slide.downsamples):
            raise DataError(
                f"slide {about.slide!r}: its patches are from level {about.level}, but {slide.path} has "
                f"levels 0 to {len(slide.downsamples) - 1}"
            )
        downsample = slide.downsamples[about.level]
        note = f"patch edge {size * downsample:,.5g} px: {size} px of level {about.level} x {downsample:.4g}"
        return size * downsample, note
    if about.magnification is not None and slide.power is not None:
        factor = slide.power / about.magnification
        note = (
            f"patch edge {size * factor:,.5g} px: {size} px at {about.magnification:g}x of {slide.power:g}x"
        )
        return size * factor, note
    return None


def _step(corners_N2: np.ndarray) -> float | None:
    """The most frequent distance of neighbours within rows and columns; None if no two are neighbours.

    The smallest distance would be wrong for CLAM's patches, whose grid begins anew in every piece of tissue.
    """
    steps = []
    for along in (0, 1):
        order_N = np.lexsort((corners_N2[:, along], corners_N2[:, 1 - along]))
        sorted_N2 = corners_N2[order_N]
        differences_N2 = np.diff(sorted_N2, axis=0)
        same_line = differences_N2[:, 1 - along] == 0
        distances = differences_N2[same_line & (differences_N2[:, along] > 0), along]
        if len(distances):
            counts = Counter(distances.tolist())
            steps.append(min(counts, key=lambda distance: (-counts[distance], distance)))
    return min(steps) if steps else None


def _check(places: Places, slide: Slide, name: str) -> None:
    """Raise unless all patches lie on the slide, except for up to an edge at its margin."""
    extent, (width, height) = places.extent, slide.size
    right, bottom = extent.x + extent.width, extent.y + extent.height
    over = places.edge
    if extent.x < -over or extent.y < -over or right > width + over or bottom > height + over:
        raise DataError(
            f"slide {name!r}: its patches reach from ({extent.x:.0f}, {extent.y:.0f}) to ({right:.0f}, "
            f"{bottom:.0f}), but {slide.path} has {width} x {height} pixels: expected coordinates of level 0 "
            "of this slide"
        )
