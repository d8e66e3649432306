"""Heat maps of folders of slides: files, bad slides, hostile names, and the command."""

import csv
import json

import numpy as np
import pytest
from job_scripts import run_here
from PIL import Image
from score_files import write_scores, write_slide

import mhimdist as mh
from mhimdist.errors import ConfigError, DataError

XML = (
    '<ASAP_Annotations><Annotations><Annotation Type="Polygon" PartOfGroup="Tumor"><Coordinates>'
    '<Coordinate X="320" Y="64"/><Coordinate X="448" Y="64"/><Coordinate X="448" Y="192"/>'
    "</Coordinates></Annotation></Annotations></ASAP_Annotations>"
)


@pytest.fixture
def prediction(tmp_path, grid):
    """A writer of scores into a prediction's folder."""

    def write(slide, folder="one", **options):
        coords_N2, attention_N, hot_N = grid
        given = {"coords_N2": coords_N2, "attention_N": attention_N, "tumor_N": np.where(hot_N, 0.9, 0.2)}
        write_scores(tmp_path / folder, slide, **given | {"patch_size": 64} | options)
        return tmp_path / folder

    return write


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_a_slide_becomes_a_picture_a_table_and_geojson(prediction, tmp_path, capsys):
    out = mh.heat_maps(mh.HeatMaps(predictions=[prediction("s_1")], width=1600))
    assert out == tmp_path / "one" / "heatmaps"
    assert names(out) == ["s_1/heatmap.png", "s_1/patches.geojson", "s_1/top_patches.csv"]
    assert size_of(out / "s_1" / "heatmap.png")[0] == 1600
    assert len(json.loads((out / "s_1" / "patches.geojson").read_text())["features"]) == 48
    assert capsys.readouterr().out == f"[1/1] {out}/s_1\nheat maps: {out}, a folder per slide\n"


def test_the_table_lists_the_highest_and_the_lowest(prediction, grid):
    out = mh.heat_maps(mh.HeatMaps(predictions=[prediction("s", labels_N=grid[2])], top=3, geojson=False))
    assert names(out) == ["s/heatmap.png", "s/top_patches.csv"]
    with (out / "s" / "top_patches.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["end"], row["rank"], row["patch"]) for row in rows] == [
        *(("top", "1", "22"), ("top", "2", "21"), ("top", "3", "14")),
        *(("bottom", "1", "0"), ("bottom", "2", "1"), ("bottom", "3", "2")),
    ]
    assert (rows[0]["x"], rows[0]["y"], rows[0]["instance_label"]) == ("384", "128", "1")
    assert float(rows[0]["attention"]) == pytest.approx(grid[1][22], rel=1e-5)
    assert float(rows[0]["instance_tumor"]) == pytest.approx(0.9)
    assert rows[0]["teacher_attention"] == ""


def test_fewer_patches_than_asked_for_are_listed_once(prediction):
    given = {"coords_N2": np.array([[0, 0], [64, 0], [128, 0]]), "attention_N": np.full(3, 1 / 3)}
    out = mh.heat_maps(mh.HeatMaps(predictions=[prediction("s", **given, tumor_N=None)], top=2))
    with (out / "s" / "top_patches.csv").open() as file:
        assert [(row["end"], row["patch"]) for row in csv.DictReader(file)] == [
            *(("top", "0"), ("top", "1"), ("bottom", "2"))
        ]


def test_slides_and_annotations_are_drawn(prediction, tmp_path):
    pixels_YX3 = np.full((400, 640, 3), (200, 120, 160), np.uint8)
    pixels_YX3[128:192, 384:448] = (10, 20, 250)  # the patch with the highest attention
    write_slide(tmp_path / "slides" / "s.tif", pixels_YX3, mpp=0.5)
    (tmp_path / "outlines").mkdir()
    (tmp_path / "outlines" / "S.xml").write_text(XML)
    folders = {"slides": tmp_path / "slides", "annotations": tmp_path / "outlines"}
    one = prediction("s")
    out = mh.heat_maps(mh.HeatMaps(predictions=[one], top=2, **folders))
    assert names(out / "s") == ["heatmap.png", "patches.geojson", "top_patches.csv", "top_patches.png"]
    top = np.asarray(Image.open(out / "s" / "top_patches.png").convert("RGB")).reshape(-1, 3)
    assert (abs(top.astype(int) - (10, 20, 250)).max(1) < 3).sum() > 200 * 200
    with_outline = np.asarray(Image.open(out / "s" / "heatmap.png").convert("L")).astype(int)
    mh.heat_maps(mh.HeatMaps(predictions=[one], slides=tmp_path / "slides"))
    without = np.asarray(Image.open(out / "s" / "heatmap.png").convert("L")).astype(int)
    height = min(len(with_outline), len(without)) - 200  # without the notes
    assert (abs(with_outline[:height] - without[:height]) > 50).sum() > 500


def test_a_bad_slide_is_named_and_the_rest_goes_on(prediction, grid, capsys):
    one = prediction("good-1")
    prediction("bad", attention_N=np.where(grid[2], np.nan, grid[1]))
    prediction("no-coords", coords_N2=None)
    prediction("um", coords_unit="um", level=None)
    (one / "scores" / "cut.parquet").write_bytes(b"PAR1")
    prediction("z-good")
    with pytest.raises(DataError) as raised:
        mh.heat_maps(mh.HeatMaps(predictions=[one]))
    message = str(raised.value)
    assert message.startswith(f"4 of 6 slides have no map; the others are in {one}/heatmaps: bad (")
    assert "attention of patch 13 is nan, and of 4 of 48 patches" in message
    assert "cut.parquet is not a whole Parquet file" in message
    assert "slide 'no-coords' has no coordinates, so it has no map: predict on features with" in message
    assert "slide 'um' has coordinates in µm, and QuPath wants pixels" in message
    lines = capsys.readouterr().out.splitlines()
    assert [line[:6] for line in lines] == [f"[{number}/6] " for number in range(1, 7)]
    made = names(one / "heatmaps")
    assert {"good-1/heatmap.png", "z-good/heatmap.png", "um/heatmap.png"} <= set(made)
    assert [name for name in made if name.startswith("no-coords")] == ["no-coords/top_patches.csv"]
    assert not [name for name in made if name.startswith(("bad", "cut"))]


@pytest.mark.parametrize(
    "slide", ["../x", "/etc/x", "<script>alert(1)</script>", "a\nb", "..", "=cmd()", "$1"]
)
def test_no_name_leads_out_of_the_folder_or_into_a_formula(prediction, tmp_path, slide):
    one = prediction(slide)
    before = set(names(tmp_path))
    out = mh.heat_maps(mh.HeatMaps(predictions=[one], out=tmp_path / "out" / "deep"))
    new = set(names(tmp_path)) - before
    assert len(new) == 3
    assert all(name.startswith("out/deep/") and name.count("/") == 3 for name in new)
    with next(out.glob("*/top_patches.csv")).open() as file:
        for line in csv.reader(file):
            assert not any(cell.startswith(("=", "@", "+")) for cell in line)


def test_the_folder_is_named_by_what_the_file_says(prediction, tmp_path):
    """A file that was renamed, or whose metadata lie, does not write elsewhere."""
    one = prediction("../../x")
    (one / "scores" / "%2E%2E%2F%2E%2E%2Fx.parquet").rename(one / "scores" / "a.parquet")
    out = mh.heat_maps(mh.HeatMaps(predictions=[one / "scores" / "a.parquet"], geojson=False))
    assert [path.name for path in out.iterdir()] == ["%2E%2E%2F%2E%2E%2Fx"]


@pytest.mark.long
def test_predictions_stand_side_by_side(prediction):
    one, two = prediction("s"), prediction("s", folder="two")
    out = mh.heat_maps(mh.HeatMaps(predictions=[one, two]))
    assert names(out / "s") == [
        *("heatmap.png", "patches-one.geojson", "patches-two.geojson", "top_patches.csv"),
    ]
    alone = size_of(mh.heat_maps(mh.HeatMaps(predictions=[two])) / "s" / "heatmap.png")
    assert size_of(out / "s" / "heatmap.png")[1] > 1.6 * alone[1]
    prediction("t")
    with pytest.raises(DataError, match=r"1 of 2 slides have no map; .*: t \(two has no scores of it\)"):
        mh.heat_maps(mh.HeatMaps(predictions=[one, two]))
    mh.heat_maps(mh.HeatMaps(predictions=[one, two], only=["s"], names=["AB-MIL", "../MHIM"]))
    assert (out / "s" / "patches-..%2FMHIM.geojson").exists()


def test_what_is_asked_for_must_be_there(prediction, tmp_path):
    one = prediction("s")
    with pytest.raises(DataError, match="has no scores of slide 'S'; it has 1 other"):
        mh.heat_maps(mh.HeatMaps(predictions=[one], only=["S"]))
    with pytest.raises(DataError, match=r"no predictions at .*/nowhere: expected the --out of"):
        mh.heat_maps(mh.HeatMaps(predictions=[tmp_path / "nowhere"]))
    with pytest.raises(DataError, match=r"holds no scores/\*\.parquet: predict with --scores"):
        mh.heat_maps(mh.HeatMaps(predictions=[tmp_path]))
    with pytest.raises(DataError, match="is given more than once"):
        mh.heat_maps(mh.HeatMaps(predictions=[one, one]))
    with pytest.raises(ConfigError, match="no class is named 'tumour'; expected some of normal, tumor"):
        mh.heat_maps(mh.HeatMaps(predictions=[one], classes=["tumour"]))


def test_a_slide_without_a_file_is_named(prediction, tmp_path):
    write_slide(tmp_path / "slides" / "other.tif", np.zeros((64, 64, 3), np.uint8), levels=1)
    with pytest.raises(DataError, match="slide 's' has no file of its name among the slides"):
        mh.heat_maps(mh.HeatMaps(predictions=[prediction("s")], slides=tmp_path / "slides"))


def test_the_command_ends_with_status_1_and_the_list(prediction, tmp_path):
    one = prediction("s")
    done = run_here("heatmap.py", "--predictions", str(one), "--no-geojson", "--width", "1500", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    prediction("t", coords_N2=None)
    done = run_here("heatmap.py", "--predictions", str(one), home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: 1 of 2 slides have no map; the others are in {one}/heatmaps: t (")
    assert len(done.stderr.splitlines()) == 1
    done = run_here("heatmap.py", "--predictions", str(one), "--width", "800", home=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: width: Input should be greater than or equal to 1500, got '800'\n",
    )


@pytest.mark.long
def test_several_processes_draw_what_one_draws(prediction, tmp_path, capsys):
    for slide in ("a", "b", "c"):
        folder = prediction(slide)
    (folder / "scores" / "bad.parquet").write_bytes(b"PAR1")
    drawn = {}
    for workers in (1, 2):
        out = tmp_path / f"by-{workers}"
        job = mh.HeatMaps(predictions=[folder], out=out, workers=workers, width=1500)
        with pytest.raises(DataError, match=r"1 of 4 slides have no map"):
            mh.heat_maps(job)
        assert capsys.readouterr().out.count("failed: ") == 1
        drawn[workers] = {name: (out / name).read_bytes() for name in names(out)}
    assert drawn[1] == drawn[2]
    assert len(drawn[1]) == 9


@pytest.mark.long
def test_one_map_holds_attention_and_probability(prediction, tmp_path):
    folder, shown = prediction("s"), {}
    for in_one in (False, True):
        out = mh.heat_maps(
            mh.HeatMaps(predictions=[folder], out=tmp_path / f"{in_one}", in_one=in_one, top=0, geojson=False)
        )
        with Image.open(out / "s" / "heatmap.png") as picture:
            pixels_YX3 = np.asarray(picture.convert("RGB")).astype(int)
        cyan_YX = (pixels_YX3[..., 2] - pixels_YX3[..., 0] > 120) & (pixels_YX3[..., 1] > 150)
        shown[in_one] = cyan_YX.mean()
    assert shown[True] > 0.01 > shown[False]
