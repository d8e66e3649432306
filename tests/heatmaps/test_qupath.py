"""GeoJSON for QuPath: exact coordinates, the schema, and files of large slides."""

import json
import tracemalloc
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from score_files import write_scores

from mhimdist.errors import DataError
from mhimdist.foreign_text import qupath_class
from mhimdist.heatmaps import qupath
from mhimdist.heatmaps.places import places_of
from mhimdist.heatmaps.scores import Scores

SCHEMA = json.loads(Path(__file__).with_name("geojson_schema.json").read_text())


def refused(name):
    raise ValueError(f"{name} is not JSON")


def written(folder, scores, **options):
    path = folder / "patches.geojson"
    qupath.write(path, scores, places_of(scores, None), model=options.pop("model", "one"), **options)
    tree = json.loads(path.read_text(), parse_constant=refused)
    jsonschema.validate(tree, SCHEMA)
    return tree["features"]


@pytest.fixture
def scores(tmp_path, grid):
    coords_N2, attention_N, hot_N = grid
    path = write_scores(
        tmp_path,
        "s",
        coords_N2=coords_N2,
        attention_N=attention_N,
        teacher_N=attention_N[::-1],
        tumor_N=np.where(hot_N, 0.9, 0.2),
        patch_size=64,
    )
    return Scores.read(path)


def test_each_patch_is_a_square_with_its_class_and_measurements(tmp_path, scores):
    features = written(tmp_path, scores)
    assert len(features) == 48
    feature = features[13]  # row 1, column 5: hot
    assert feature["geometry"]["coordinates"] == [[[320, 64], [384, 64], [384, 128], [320, 128], [320, 64]]]
    assert all(type(value) is int for point in feature["geometry"]["coordinates"][0] for value in point)
    properties = feature["properties"]
    assert properties["objectType"] == "tile"
    assert properties["classification"] == {"name": "tumor", "color": [213, 94, 0]}
    assert features[0]["properties"]["classification"] == {"name": "normal", "color": [86, 180, 233]}
    measured = properties["measurements"]
    assert measured["attention"] == pytest.approx(scores.attention_N[13], rel=1e-3)
    assert measured["attention percentile"] == pytest.approx(100 * 44.5 / 48, rel=1e-3)
    assert measured["teacher attention"] == pytest.approx(scores.attention_N[34], rel=1e-3)
    assert measured["probability of tumor"] == pytest.approx(0.9)
    assert measured["probability of normal"] == pytest.approx(0.1)


def test_ids_follow_from_slide_model_and_patch(tmp_path, scores):
    ids = [feature["id"] for feature in written(tmp_path, scores)]
    assert len(set(ids)) == 48
    assert ids == [feature["id"] for feature in written(tmp_path, scores)]
    assert not set(ids) & {feature["id"] for feature in written(tmp_path, scores, model="two")}
    # A patch keeps its id if others are left out.
    assert written(tmp_path, scores, min_percentile=95)[0]["id"] in ids


def test_only_the_highest_can_be_kept(tmp_path, scores):
    kept = written(tmp_path, scores, min_percentile=100 * 44 / 48)
    corners = [feature["geometry"]["coordinates"][0][0] for feature in kept]
    assert corners == [[320, 64], [384, 64], [320, 128], [384, 128]]


def test_without_probabilities_the_class_is_a_tenth_of_attention(tmp_path, grid):
    path = write_scores(tmp_path, "s", coords_N2=grid[0], attention_N=grid[1])
    features = written(tmp_path, Scores.read(path))
    names = [feature["properties"]["classification"]["name"] for feature in features]
    assert names[13] == "attention 90-100 %"
    assert names[0] == "attention 0-10 %"
    assert len(set(names)) == 10


def test_without_attention_patches_rank_by_the_predicted_class(tmp_path, grid):
    path = write_scores(tmp_path, "s", coords_N2=grid[0], attention_N=None, tumor_N=grid[1])
    measured = written(tmp_path, Scores.read(path))[13]["properties"]["measurements"]
    assert "attention" not in measured
    assert measured["probability of tumor percentile"] == pytest.approx(100 * 44.5 / 48, rel=1e-3)


@pytest.mark.slow
def test_a_large_slide_is_streamed_into_a_file_below_25_mb(tmp_path):
    rng = np.random.default_rng(0)
    size = 45_000
    coords_N2 = np.stack([np.arange(size) % 300, np.arange(size) // 300], axis=1) * 512 + 10_000
    attention_N = rng.gamma(0.1, size=size)
    path = write_scores(
        tmp_path,
        "TCGA-A1-A0SB-01Z-00-DX1.B34C267B-CAAE-43B5-AD5C-276C26F0BFA1",
        coords_N2=coords_N2,
        attention_N=attention_N / attention_N.sum(),
        teacher_N=attention_N / attention_N.sum(),
        tumor_N=rng.uniform(size=size),
        labels_N=rng.integers(0, 2, size),
        patch_size=512,
    )
    scores = Scores.read(path)
    places = places_of(scores, None)
    out = tmp_path / "large.geojson"
    tracemalloc.start()
    assert qupath.write(out, scores, places, model="one") == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.stat().st_size < 25e6
    assert peak < 20e6  # 8 numbers of 45,000 patches; their features would take 10 times as much
    assert list(tmp_path.glob(".*.part")) == []


def test_micrometres_are_refused(tmp_path, grid):
    path = write_scores(tmp_path, "s", coords_N2=grid[0], attention_N=grid[1], coords_unit="um")
    with pytest.raises(DataError, match="slide 's' has coordinates in µm, and QuPath wants pixels"):
        written(tmp_path, Scores.read(path))
    assert not (tmp_path / "patches.geojson").exists()


def test_names_of_classes_are_those_that_qupath_takes():
    """It refuses line breaks, and `a: b` would be the class b derived from a."""
    assert [qupath_class(name) for name in ("tumor", "a: b", "a\nb", " ")] == [
        "tumor",
        "a- b",
        "a b",
        "unnamed",
    ]
