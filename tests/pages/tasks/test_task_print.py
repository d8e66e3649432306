import re
from pathlib import Path

import numpy as np
import pytest
from outcome_bags import GRADES, followed, graded, labelled, valued

from mhimdist.pages.tasks.print import (
    multilabel_drawings,
    ordinal_drawings,
    regression_drawings,
    survival_drawings,
    write_drawings,
)


@pytest.mark.parametrize(
    ("drawings", "make", "option", "names"),
    [
        (ordinal_drawings, graded, (GRADES,), ["confusion-mhim-a"]),
        (regression_drawings, valued, ("points",), ["values-mhim-a-hrd-score"]),
        (multilabel_drawings, labelled, (), ["roc-mhim-a", "precision-recall-mhim-a"]),
        (survival_drawings, followed, ("$t$",), ["survival-mhim-a", "auc-over-time", "brier-over-time"]),
    ],
)
def test_figures_are_vectors_in_the_width_of_a_column(drawings, make, option, names, tmp_path: Path):
    written = write_drawings(drawings({"MHIM (a)": [make(fold) for fold in (0, 1)]}, *option), tmp_path)
    assert [path.stem for path in written] == names
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/Subtype /Image" not in content
        assert re.search(rb"/MediaBox \[ 0 0 24\d\.\d+ 216 \]", content)


def test_equal_bags_make_equal_files(tmp_path: Path):
    first, second = (
        write_drawings(survival_drawings({"x": [followed()]}, ""), tmp_path / each) for each in ("a", "b")
    )
    assert [one.read_bytes() for one in first] == [other.read_bytes() for other in second]


def test_names_that_make_one_file_name_get_two_files(tmp_path: Path):
    configurations = {"MHIM (a)": [graded(0)], "MHIM-A": [graded(1)], "µ": [graded(2)]}
    found = write_drawings(ordinal_drawings(configurations, GRADES), tmp_path)
    assert [path.stem for path in found] == ["confusion-mhim-a", "confusion-mhim-a-2", "confusion-unnamed"]


def test_what_has_nothing_to_draw_is_not_written(tmp_path: Path):
    network = labelled()
    network.targets_NK[:] = np.nan
    assert write_drawings(multilabel_drawings({"x": [network]}), tmp_path) == []
    bare = followed()
    bare = type(bare)(**{**bare.__dict__, "cuts": np.empty(0), "survival_NT": None, "grid_T": np.empty(0)})
    assert write_drawings(survival_drawings({"x": [bare]}, ""), tmp_path) == []
