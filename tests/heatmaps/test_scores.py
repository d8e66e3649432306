"""Files of scores: what is read, and what is refused by name."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from score_files import write_scores

from mhimdist.errors import DataError
from mhimdist.heatmaps.scores import Scores


def test_all_columns_are_read(tmp_path, grid):
    coords_N2, attention_N, hot_N = grid
    path = write_scores(
        tmp_path, "a", coords_N2=coords_N2, attention_N=attention_N, tumor_N=hot_N / 1.0, labels_N=hot_N
    )
    scores = Scores.read(path)
    assert scores.num_patches == 48
    assert (scores.coords_N2 == coords_N2).all()
    assert scores.attention_N == pytest.approx(attention_N)
    assert scores.teacher_attention_N is None
    assert (scores.probability_N["tumor"] == hot_N).all()
    assert (scores.probability_N["normal"] == ~hot_N).all()
    assert (scores.instance_labels_N == hot_N).all()
    assert scores.about.probability["tumor"] == 0.9375


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_by_patch(tmp_path, grid, value):
    coords_N2, attention_N, _ = grid
    attention_N[[17, 20]] = value
    path = write_scores(tmp_path, "a", coords_N2=coords_N2, attention_N=attention_N)
    with pytest.raises(DataError, match=rf"a\.parquet: attention of patch 17 is {value}, and of 2 of 48"):
        Scores.read(path)


def test_a_single_missing_coordinate_is_refused(tmp_path, grid):
    path = write_scores(tmp_path, "a", coords_N2=grid[0], attention_N=grid[1])
    table = pq.read_table(path)
    x = pa.array([None, *table["x"].to_pylist()[1:]], pa.int32())
    pq.write_table(table.set_column(0, "x", x), path)
    with pytest.raises(DataError, match="x of patch 0 is null, and of 1 of 48"):
        Scores.read(path)


def test_a_model_without_any_score_of_patches_is_refused(tmp_path, grid):
    path = write_scores(tmp_path, "a", coords_N2=grid[0], attention_N=None, tumor_N=None)
    with pytest.raises(DataError, match="slide 'a' holds neither attention nor probabilities"):
        Scores.read(path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"format": 2}, "format: "),
        ({"slide": ""}, "slide: "),
        ({"patch_size": 0}, "patch_size: "),
        ({"level": -1}, "level: "),
    ],
)
def test_metadata_that_cannot_be_used_are_named(tmp_path, grid, about, message):
    write_scores(tmp_path, "a", coords_N2=grid[0], attention_N=grid[1])
    path = tmp_path / "scores" / "a.parquet"
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"mhimdist"]) | about
    pq.write_table(table.replace_schema_metadata({b"mhimdist": json.dumps(metadata)}), path)
    with pytest.raises(DataError, match=rf"a\.parquet: the metadata 'mhimdist' cannot be used: {message}"):
        Scores.read(path)


def test_other_files_are_refused(tmp_path, grid):
    path = write_scores(tmp_path, "a", coords_N2=grid[0], attention_N=grid[1])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.parquet is not a whole Parquet file"):
        Scores.read(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match="its schema lacks the metadata 'mhimdist'"):
        Scores.read(path)
    pq.write_table(pa.table({"x": pa.array([], pa.int32())}), path)
    with pytest.raises(DataError, match="holds no patches"):
        Scores.read(path)
