"""Tables that a spreadsheet may open, whatever slides and classes are called."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mhimdist as mh
from mhimdist.prediction.tables import write_table

HOSTILE = ("=cmd()", "+1", "-1+1", "@SUM(A1)", "a,b", 'say "hi"', "two\nlines", "<script>", "a|b", "[red]x")


def test_the_header_is_foreign_text_too(tmp_path):
    write_table(pa.table({"=x": [1, None], "y": ["-2", ""]}), tmp_path / "table")
    assert (tmp_path / "table.csv").read_text() == "'=x,y\n1,'-2\n,\n"


@pytest.mark.faults(51)
def test_hostile_names_of_slides_and_cases_stay_text(trained, tmp_path, capsys):
    folder, labels = tmp_path / "features", tmp_path / "labels.csv"
    folder.mkdir()
    for name in HOSTILE:
        np.save(folder / f"{name}.npy", np.ones((3, 8), np.float32))
    with labels.open("w", newline="") as file:
        rows = ((name, "class-1", HOSTILE[i // 2]) for i, name in enumerate(HOSTILE))
        csv.writer(file).writerows([("slide", "label", "case"), *rows])
    out = mh.predict(trained, folder, tmp_path / "out", labels=labels, scores=True)
    table = pq.read_table(out / "predictions.parquet")
    assert sorted(table["slide"].to_pylist()) == sorted(HOSTILE)  # Parquet holds the names themselves
    for name in ("predictions", "cases"):
        with (out / f"{name}.csv").open(newline="") as file:
            for row in csv.reader(file):
                assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
    with (out / "predictions.csv").open(newline="") as file:
        slides = [row["slide"].removeprefix("'") for row in csv.DictReader(file)]
    assert sorted(slides) == sorted(HOSTILE)
    said = [
        json.loads(pq.read_schema(file).metadata[b"mhimdist"])["slide"]
        for file in (out / "scores").glob("*.parquet")
    ]
    assert sorted(said) == sorted(HOSTILE)
    assert "10 slides by 2 models" in capsys.readouterr().out
