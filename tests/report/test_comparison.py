import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from mhimdist.report.comparison import PAPER_WARNING, Comparison, Row
from mhimdist.training.result import Result


def _result(protocol="strict", seed=0, fold=1, auc=0.9, **changes):
    generator = np.random.default_rng(seed * 10 + fold)
    labels = np.arange(20) % 2
    positive = np.clip(0.3 + 0.4 * labels + 0.2 * generator.normal(size=20), 0, 1)
    metrics = {"auc": auc, "accuracy": 0.8, "f1": 0.7, "precision": 0.6, "recall": 0.5, "threshold": 0.4}
    fields = {
        "config_digest": "c",
        "split_digest": "s",
        "data_digest": "d",
        "num_epochs": 25,
        "best_epoch": 3,
        "epoch_s": 1.0,
        "num_parameters": 10,
        "validation": metrics,
        "test": metrics,
        "keys": [f"b{fold}-{i}" for i in range(20)],
        "cases": [f"c{fold}-{i // 2}" for i in range(20)],
        "labels": labels.tolist(),
        "probabilities": np.stack([1 - positive, positive], axis=1).tolist(),
    }
    return Result(protocol=protocol, seed=seed, fold=fold, **(fields | changes))


def _comparison(protocols=("strict",), rows=None, **changes):
    made = [
        Row(
            name,
            protocol,
            [
                _result(protocol, seed, fold, auc + 0.01 * fold + (0.02 if protocol == "paper" else 0))
                for seed in (1, 2)
                for fold in (1, 2)
            ],
            4,
        )
        for protocol in protocols
        for name, auc in (("MHIM", 0.9), ("plain", 0.8))
    ]
    fields = {
        "name": "it",
        "dataset": "d",
        "synthetic": False,
        "num_bags": 80,
        "num_cases": 20,
        "num_folds": 2,
        "split_by": "2-fold by case",
    }
    return Comparison(**(fields | changes), seeds=(1, 2), rows=rows or made, wall_s=1.0, num_found=0)


def test_figures_are_formed_over_folds_then_seeds():
    row = Row(
        "it",
        "strict",
        [_result(seed=s, fold=f, auc=0.8 + s / 10 + f / 50) for s in (0, 1) for f in (1, 2)],
        4,
    )
    assert row.spread("auc") == pytest.approx((0.88, 0.05))
    one_seed = Row("it", "strict", [r for r in row.results if r.seed == 0], 2)
    assert one_seed.spread("auc") == pytest.approx((0.83, 0.01))
    low, high = row.interval
    assert 0.5 < low < row.pooled < high <= 1


def test_a_record_says_protocol_folds_seeds_epochs_and_runs():
    record = _comparison(("paper",)).rows[0].record()
    assert (record["protocol"], record["selects_on_test"]) == ("paper", True)
    assert (record["folds"], record["seeds"], record["epochs"], record["runs"]) == (2, 2, "25", 4)


def test_every_table_and_file_of_the_papers_protocol_says_so():
    comparison = _comparison(("strict", "paper"))
    strict, paper, inflation = comparison.grids()
    assert PAPER_WARNING in paper.caption
    assert PAPER_WARNING not in strict.caption
    assert "paper protocol" in paper.title
    assert json.loads(comparison.json())["warning"] == PAPER_WARNING
    assert "warning" not in json.loads(_comparison().json())
    assert " ".join(PAPER_WARNING.split()) in " ".join(comparison.markdown().split())
    rows = list(csv.DictReader(io.StringIO(comparison.csv())))
    assert [row["selects_on_test"] for row in rows] == ["False", "False", "True", "True"]
    assert [line[1] for line in inflation.rows] == ["+0.020", "+0.020"]
    assert [row["auc_inflation"][:6] for row in rows] == ["", "", "0.0200", "0.0200"]
    body = json.loads(comparison.json())
    assert [row["auc_inflation"] for row in body["rows"]] == [None, None, *([pytest.approx(0.02)] * 2)]
    assert body["inflation"] == inflation.caption
    assert "auc_inflation" not in json.loads(_comparison().json())["rows"][0]


def test_the_inflation_says_whether_it_is_of_selection_alone():
    def caption(strict, paper):
        num_train = {"strict": strict, "paper": paper}
        made = _comparison(("strict", "paper"), num_train=num_train, validation_share=0.15)
        return made.grids()[-1].caption

    assert caption(225.0, 225.0).startswith("How much selecting on the test fold adds to")
    both = caption(225.3, 265.0)
    assert "265 bags train against 225 under strict" in both
    assert "--paper-validation-share 0.15 to see the first effect alone" in both


def test_a_row_with_failures_counts_what_is_left_and_names_them():
    rows = [
        Row("broken", "strict", [], 2, {"broken, fold 1": "boom", "broken, fold 2": "boom"}),
        Row("half", "strict", [_result()], 2, {"half, fold 2": "out of memory"}),
    ]
    comparison = _comparison(rows=rows)
    (grid,) = comparison.grids()
    assert grid.rows[0][1:] == ["-", "-", "-", "-", "-", "-", "0 of 2"]
    assert (grid.rows[1][1], grid.rows[1][-1]) == ("0.900", "1 of 2")
    assert "- half, fold 2: out of memory" in comparison.markdown()
    assert len(comparison.failures) == 3
    assert comparison.csv().count("\n") == 3


def test_a_metric_that_a_fold_does_not_define_is_left_out_of_the_mean():
    undefined = {"auc": None, "accuracy": 0.5, "f1": 0.5, "precision": 0.5, "recall": 0.5, "threshold": 0.4}
    row = Row("it", "strict", [_result(), _result(fold=2, test=undefined)], 2)
    assert row.spread("auc") == (0.9, None)
    assert row.spread("accuracy") == pytest.approx((0.65, 0.15))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_tables_fit_and_cut_no_number(width):
    out = io.StringIO()
    for grid in _comparison(("strict", "paper")).grids():
        grid.print(Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "0.915 +- 0.000" in text
    assert set(filter(lambda letter: not letter.isascii(), text)) == {
        "─"
    }  # rules are drawn, everything else is ASCII
    assert ("0.700 +- 0.000" in text) == (width == 160)
