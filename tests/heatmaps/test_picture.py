"""The picture: hot patches are hot in place, outlines lie where they were drawn, words are all there."""

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from score_files import write_scores

from mhimdist.heatmaps import picture
from mhimdist.heatmaps.annotations import Outline
from mhimdist.heatmaps.places import places_of
from mhimdist.heatmaps.scores import Scores
from mhimdist.heatmaps.slides import Region

VIEW = Region(-64, -64, 640, 512)


def row(folder, grid, name="one", mpp=None, **about):
    coords_N2, attention_N, hot_N = grid
    path = write_scores(
        folder / name,
        about.pop("slide", "s"),
        coords_N2=coords_N2,
        attention_N=attention_N,
        tumor_N=np.where(hot_N, 0.9, 0.2),
        **{"patch_size": 64} | about,
    )
    scores = Scores.read(path)
    return picture.Row(name, scores, places_of(scores, None, mpp=mpp))


class Drawn:
    """A picture as it was saved, and where its maps are."""

    def __init__(self, folder, sheet):
        self.figure = picture.compose(sheet)
        self.figure.savefig(folder / "a.png", dpi=sheet.dpi)
        self.pixels = np.asarray(Image.open(folder / "a.png").convert("RGB")) / 255

    def at(self, panel, x, y):
        """The colour in a map, at a place in pixels of the slide."""
        column, line = self.figure.axes[panel].transData.transform((x, y))
        return self.pixels[len(self.pixels) - 1 - int(line), int(column)]

    def words(self):
        texts = [text.get_text() for text in self.figure.texts]
        for axes in self.figure.axes:
            texts += [axes.get_xlabel(), *(text.get_text() for text in axes.texts)]
        return "\n".join(texts)


def centre(coords_2):
    return coords_2 + 32


def test_every_patch_has_the_colour_of_its_percentile(tmp_path, grid):
    drawn = Drawn(tmp_path, picture.Sheet([row(tmp_path, grid)], ["tumor"], VIEW))
    coords_N2, attention_N, hot_N = grid
    for coords_2, attention, hot in zip(coords_N2, attention_N, hot_N, strict=True):
        percentile = (np.sum(attention_N < attention) + 0.5) / 48
        expected = colormaps["viridis"](percentile)[:3]
        assert drawn.at(0, *centre(coords_2)) == pytest.approx(expected, abs=0.02)
        expected = colormaps["cividis"](0.9 if hot else 0.2)[:3]
        assert drawn.at(1, *centre(coords_2)) == pytest.approx(expected, abs=0.02)
    assert drawn.at(0, -32, -32) == pytest.approx((1, 1, 1))
    assert drawn.pixels.shape[1] == 2400


def test_the_hot_square_is_hot_in_the_file_at_its_place(tmp_path, grid):
    """Seen as a reader sees it: the yellow pixels of the left map, without asking where the maps are."""
    coords_N2, _, hot_N = grid
    two_levels = (coords_N2, np.where(hot_N, 0.1, 0.6 / 44), hot_N)
    drawn = Drawn(tmp_path, picture.Sheet([row(tmp_path, two_levels)], ["tumor"], VIEW))
    red, green, blue = np.moveaxis(drawn.pixels, 2, 0)
    yellow_YX = (red > 0.6) & (green > 0.8) & (blue < 0.3)
    yellow_YX[:, 1200:] = False  # the right map
    yellow_YX[int(len(yellow_YX) * 0.85) :] = False  # the colour bars
    rows, columns = np.flatnonzero(yellow_YX.any(1)), np.flatnonzero(yellow_YX.any(0))
    pixels_a_patch = (columns.max() - columns.min() + 1) / 2
    assert (rows.max() - rows.min() + 1) / 2 == pytest.approx(pixels_a_patch, abs=1)
    axes_left, axes_right = (drawn.figure.axes[0].transData.transform((x, 0))[0] for x in (0, 512))
    assert pixels_a_patch == pytest.approx((axes_right - axes_left) / 8, abs=1)
    assert (columns.min() - axes_left) / pixels_a_patch == pytest.approx(5, abs=0.05)


def test_over_a_slide_maps_let_the_tissue_through(tmp_path, grid):
    def thumbnail(width, height):
        return Image.new("RGB", (width, height), (200, 120, 160))

    drawn = Drawn(tmp_path, picture.Sheet([row(tmp_path, grid)], ["tumor"], VIEW, thumbnail))
    assert drawn.at(0, 100, 100) == pytest.approx(np.array([200, 120, 160]) / 255, abs=0.01)
    grey = round(0.299 * 200 + 0.587 * 120 + 0.114 * 160) / 255
    assert drawn.at(1, -32, -32) == pytest.approx([grey] * 3, abs=0.01)
    hot = 0.62 * np.array(colormaps["cividis"](0.9)[:3]) + 0.38 * grey
    assert drawn.at(2, *centre(grid[0][13])) == pytest.approx(hot, abs=0.02)


def test_outlines_are_drawn_where_they_are_in_every_map(tmp_path, grid):
    square = Outline("Tumor", np.array([[320, 64], [448, 64], [448, 192], [320, 192]]))
    sheet = picture.Sheet([row(tmp_path, grid)], ["tumor"], VIEW, outlines=[square])
    drawn = Drawn(tmp_path, sheet)
    without = Drawn(tmp_path, picture.Sheet([row(tmp_path, grid)], ["tumor"], VIEW))
    for panel in (0, 1):
        for x, y in ((350, 64), (448, 100), (400, 192), (320, 150)):  # the last side closes the ring
            assert drawn.at(panel, x, y) == pytest.approx((0, 0, 0), abs=0.1)
            assert without.at(panel, x, y).max() > 0.2
        assert drawn.at(panel, 384, 128) == pytest.approx(without.at(panel, 384, 128))
    assert "outlines: Tumor (solid)" in drawn.words()


def test_the_words_say_what_a_reader_must_know(tmp_path, grid):
    about = {"warnings": ["other encoder"], "label": None}
    words = Drawn(tmp_path, picture.Sheet([row(tmp_path, grid, mpp=4.0, **about)], ["tumor"], VIEW)).words()
    for said in (
        "label: unknown",
        "one — predicted: tumor, probability 0.938",
        "attention\npercentile of the slide's patches",
        "probability of tumor\nof each patch alone",
        "48 patches; patch edge 64 px at level 0",
        "warning: other encoder",
        "500 µm",
    ):
        assert said in words


def test_the_scale_bar_has_its_length(tmp_path, grid):
    drawn = Drawn(tmp_path, picture.Sheet([row(tmp_path, grid, mpp=4.0)], ["tumor"], VIEW))
    line = len(drawn.pixels) - 1 - int(drawn.figure.axes[0].transAxes.transform((0, 0.035))[1])
    left, right = (int(drawn.figure.axes[0].transAxes.transform((x, 0))[0]) for x in (0, 1))
    black = np.flatnonzero((drawn.pixels[line, left + 4 : right - 4] < 0.1).all(1))
    assert len(black) / (right - left) == pytest.approx(500 / 4 / 640, rel=0.02)
    assert "µm" not in Drawn(tmp_path, picture.Sheet([row(tmp_path, grid)], [], VIEW)).words()


def test_two_predictions_share_view_and_scale(tmp_path, grid):
    coords_N2, attention_N, hot_N = grid
    rows = [row(tmp_path, grid, "AB-MIL"), row(tmp_path, (coords_N2, attention_N[::-1], hot_N), "MHIM")]
    drawn = Drawn(tmp_path, picture.Sheet(rows, ["tumor"], VIEW))
    hottest = colormaps["viridis"](47.5 / 48)[:3]
    patch = attention_N.argmax()
    assert drawn.at(0, *centre(coords_N2[patch])) == pytest.approx(hottest, abs=0.02)
    assert drawn.at(2, *centre(coords_N2[47 - patch])) == pytest.approx(hottest, abs=0.02)
    assert "AB-MIL — predicted" in drawn.words()
    assert "MHIM — predicted" in drawn.words()


def test_a_map_that_one_prediction_lacks_says_so(tmp_path, grid):
    path = write_scores(tmp_path / "t", "s", coords_N2=grid[0], attention_N=grid[1], teacher_N=grid[1])
    with_teacher = Scores.read(path)
    rows = [row(tmp_path, grid), picture.Row("t", with_teacher, places_of(with_teacher, None, edge=64))]
    words = Drawn(tmp_path, picture.Sheet(rows, ["tumor"], VIEW)).words()
    assert "this model gives patches\nno teacher's attention" in words
    assert "this model gives patches\nno probability of tumor" in words


@pytest.mark.parametrize(
    "name", ["$x^2", "a\\frac{", "胃癌-001", "line\nbreak\x1b[31m", "x" * 300, "<script>"]
)
def test_any_name_can_be_drawn(tmp_path, grid, name):
    one = row(tmp_path, grid)
    scores = one.scores
    object.__setattr__(scores, "about", scores.about.model_copy(update={"slide": name, "predicted": name}))
    outline = Outline(name, np.array([[0, 0], [10, 0], [0, 10]]))
    sheet = picture.Sheet([picture.Row(name, scores, one.places)], ["tumor"], VIEW, outlines=[outline])
    assert Drawn(tmp_path, sheet).pixels.shape[1] == 2400
    title = picture.compose(sheet).texts[0].get_text()
    assert "\n" not in title
    assert "\x1b" not in title
    assert len(title) <= 130
