"""Edge and corners of patches, from metadata, slide or coordinates."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from score_files import write_scores

from mhimdist.errors import DataError
from mhimdist.heatmaps.places import places_of
from mhimdist.heatmaps.scores import Scores
from mhimdist.heatmaps.slides import Slide


def scores_of(folder, coords_N2, **about):
    size = 5 if coords_N2 is None else len(coords_N2)
    return Scores.read(
        write_scores(folder, "s", coords_N2=coords_N2, attention_N=np.arange(size) / 10, **about)
    )


def slide_of(size=(4096, 4096), downsamples=(1.0, 4.0), **properties):
    handle = SimpleNamespace(dimensions=size, level_downsamples=downsamples, properties=properties)
    return Slide(Path("s.svs"), handle)


GRID = np.array([[x, y] for y in (100, 356) for x in (200, 456, 712, 1480)])


@pytest.mark.parametrize(
    ("about", "slide", "edge", "note"),
    [
        ({"patch_size": 256, "level": 0}, None, 256, "patch edge 256 px at level 0"),
        ({"patch_size": 64, "level": 1}, slide_of(), 256, "64 px of level 1 x 4"),
        ({"patch_size": 64, "level": 1}, None, 256, "inferred from the step of the coordinates"),
        (
            {"patch_size": 128, "level": None, "magnification": 20.0},
            slide_of(**{"openslide.objective-power": "40"}),
            256,
            "128 px at 20x of 40x",
        ),
        ({"patch_size": 128, "level": None, "magnification": 20.0}, slide_of(), 256, "inferred"),
        ({"patch_size": None, "level": None}, None, 256, "inferred"),
    ],
)
def test_the_edge_comes_from_the_best_source(tmp_path, about, slide, edge, note):
    places = places_of(scores_of(tmp_path, GRID, **about), slide)
    assert places.edge == edge
    assert note in places.notes[0]
    assert places.unit == "px"
    assert (places.corners_N2 == GRID).all()


def test_the_given_edge_wins(tmp_path):
    places = places_of(scores_of(tmp_path, GRID), None, edge=100)
    assert (places.edge, places.step, places.notes) == (100, 100, ("patch edge 100 px, as given",))


def test_overlap_is_said(tmp_path):
    places = places_of(scores_of(tmp_path, GRID, patch_size=512), None)
    assert (places.edge, places.step) == (512, 256)
    assert places.notes[1] == "patches overlap (step 256): mean of those that cover a pixel"


def test_pieces_of_tissue_with_their_own_grids_do_not_shrink_the_step(tmp_path):
    """CLAM's grid begins anew in each piece, here 3 pixels apart."""
    other = GRID + np.array([3, 2003])
    places = places_of(scores_of(tmp_path, np.concatenate([GRID, other]), level=None), None)
    assert places.edge == 256


def test_micrometres_become_pixels_if_the_slide_or_the_user_knows_how_many(tmp_path):
    scores = scores_of(tmp_path, GRID, coords_unit="um", patch_size=224, level=None)
    places = places_of(scores, None)
    assert (places.unit, places.edge, places.mpp) == ("um", 256, 1)
    assert "drawn in µm: pixels of the slide are unknown" in places.notes
    for slide, mpp in ((slide_of(**{"openslide.mpp-x": "0.5"}), None), (None, 0.5)):
        places = places_of(scores, slide, mpp=mpp)
        assert (places.unit, places.edge, places.mpp) == ("px", 512, 0.5)
        assert (places.corners_N2 == GRID * 2).all()
    with pytest.raises(
        DataError, match=r"micrometres, and s\.svs does not say how many a pixel has; give --mpp"
    ):
        places_of(scores, slide_of())


def test_what_cannot_be_drawn_is_refused_by_name(tmp_path):
    with pytest.raises(
        DataError, match="slide 's' has no coordinates, so it has no map: predict on features"
    ):
        places_of(scores_of(tmp_path, None), None)
    with pytest.raises(DataError, match=r"edge of its 2 patches is unknown.*give --patch-edge"):
        places_of(scores_of(tmp_path, np.array([[0, 0], [300, 300]]), level=None), None)
    with pytest.raises(DataError, match=r"from level 2, but s\.svs has levels 0 to 1"):
        places_of(scores_of(tmp_path, GRID, level=2), slide_of())
    with pytest.raises(
        DataError, match=r"reach from \(200, 100\) to \(1736, 612\), but s\.svs has 1000 x 4096"
    ):
        places_of(scores_of(tmp_path, GRID, patch_size=256), slide_of((1000, 4096)))
    with pytest.raises(DataError, match="reach from"):
        places_of(scores_of(tmp_path, GRID - 1000, patch_size=256), slide_of())


def test_a_patch_may_reach_over_the_margin(tmp_path):
    assert places_of(scores_of(tmp_path, GRID, patch_size=256), slide_of((1500, 400))).edge == 256
