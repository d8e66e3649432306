import io
import json
import re
import warnings

import pytest
from rich.console import Console

from mhimdist.config.presets import preset
from mhimdist.errors import ConfigError, CrossValidationError
from mhimdist.paper import ablation
from mhimdist.paper import rows as rows_module
from mhimdist.paper.ablation import Ablation, run_ablation, select
from mhimdist.paper.tables import common, grid, grids
from mhimdist.report.comparison import Comparison, Row
from mhimdist.training.cost import Cost
from mhimdist.training.result import Result


def _base(model):
    return preset("c16", model)


def _cells(**options):
    return {(c.table, c.row, c.column): c.candidate for c in select(Ablation(**options), _base)}


def test_all_rows_of_the_paper_are_there_and_equal_cells_share_a_configuration():
    cells = _cells()
    assert [sum(table == n for table, _, _ in cells) for n in (1, 2, 3, 4, 5)] == [11, 6, 8, 10, 10]
    configs = {candidate.config.digest() for candidate in cells.values()}
    names = {candidate.name for candidate in cells.values()}
    assert len(configs) == len(names) == 27
    full, plain = preset("c16", "abmil"), preset("c16", "abmil").first_stage()
    assert [k[:2] for k, c in cells.items() if c.config == full] == [
        (1, "MHIM-MIL (AB-MIL)"),
        (2, "MHIM-MIL (AB-MIL)"),
        (3, "+MHIM+Siam.+Con."),
        (4, "R-HAM"),
        (5, "Init.+Momentum"),
    ]
    assert len([c for c in cells.values() if c.config == plain]) == 5


@pytest.mark.parametrize(
    ("cell", "strategy", "kind", "alpha"),
    [
        ((3, "Baseline", "AB."), "none", "none", 0),
        ((3, "+MHIM", "AB."), "R-HAM", "student_copy", 0),
        ((3, "+MHIM+Siam.", "Trans."), "L-HAM", "init_momentum", 0),
        ((3, "+MHIM+Siam.+Con.", "Trans."), "L-HAM", "init_momentum", 0.1),
        ((4, "HAM", "AB."), "HAM", "init_momentum", 0.1),
        ((4, "R-HAM", "Trans."), "R-HAM", "init_momentum", 0.1),
        ((4, "LR-HAM", "AB."), "LR-HAM", "init_momentum", 0.1),
        ((5, "Student copy", "AB."), "R-HAM", "student_copy", 0.1),
        ((5, "Init.", "Trans."), "L-HAM", "init", 0.1),
        ((5, "Momentum", "Trans."), "L-HAM", "momentum", 0.1),
    ],
)
def test_rows_are_the_papers_settings(cell, strategy, kind, alpha):
    config = _cells()[cell].config
    assert (config.masking.strategy, config.teacher.kind, config.loss.alpha) == (strategy, kind, alpha)
    assert config.without_effect() == []
    own = preset("c16", config.model.name)
    assert config.optimizer == own.optimizer
    if config.teacher.has_momentum:
        assert config.teacher.momentum == own.teacher.momentum


def test_ratios_are_the_presets_and_ours_only_where_it_has_none():
    cells = _cells(tables=(4,))
    masking = cells[4, "LR-HAM", "AB."].config.masking
    assert (masking.high.start, masking.low.start, masking.random.start) == (0.01, 0.2, 0.5)
    masking = cells[4, "LR-HAM", "Trans."].config.masking
    assert (masking.high.start, masking.low.start, masking.random.start) == (0.03, 0.8, 0.5)
    assert masking.high_pool_share == 0.5


def test_a_subset_of_tables_and_rows():
    assert set(_cells(tables=(1, 3), rows=("ab-mil", "+MHIM"))) == {
        (1, "AB-MIL", ""),
        (3, "+MHIM", "AB."),
        (3, "+MHIM", "Trans."),
    }
    with pytest.raises(ConfigError, match=r"rows of these tables \(Max-pooling, .*\(DSMIL\)\), got ham"):
        _cells(tables=(1,), rows=("HAM",))
    with pytest.raises(ConfigError, match="expected tables of the paper, 1 to 5, got 6"):
        Ablation.from_command_line(["--tables", "1,6"])


def test_networks_can_be_left_out_with_their_columns():
    cells = select(Ablation(tables=(1, 3), without=("transmil", "dtfd")), _base)
    names = {cell.candidate.config.model.name for cell in cells}
    assert names == {"max_pooling", "mean_pooling", "abmil", "dsmil", "clam_sb", "clam_mb"}
    first, third = grids(cells, _comparison(cells), {})
    assert [row[0] for row in first.rows][-3:] == ["CLAM-MB", "MHIM-MIL (AB-MIL)", "MHIM-MIL (DSMIL)"]
    assert "TransMIL" not in first.caption
    assert third.header == ["Module", "AB."]
    assert {len(row) for row in third.rows} == {2}
    with pytest.raises(ConfigError, match="nothing is left of these tables without abmil, transmil"):
        select(Ablation(tables=(3,), without=("abmil", "transmil")), _base)
    with pytest.raises(ConfigError, match=r"without.*expected networks of the tables, got abml"):
        Ablation.from_command_line(["--without", "abml"])


def test_epochs_and_folds_of_transmil_are_its_own():
    cells = _cells(tables=(1,), epochs=7, transmil_epochs=3, transmil_folds=1)
    for (_, row, _), candidate in cells.items():
        is_transmil = "TransMIL" in row
        assert candidate.config.epochs == (3 if is_transmil else 7)
        assert candidate.num_folds == (1 if is_transmil else None)


def test_quick_changes_defaults_that_can_still_be_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick = {"seeds": (1,), "transmil_epochs": 2}
        assert Ablation.from_job(quick=quick, arguments=[], seeds=(1, 2)).seeds == (1, 2)
        job = Ablation.from_job(quick=quick, arguments=["--quick", "--transmil-epochs", "5"], seeds=(1, 2))
    assert (job.seeds, job.transmil_epochs, job.quick) == ((1,), 5, True)


def _row(name, protocol, num_folds, epochs, failures=()):
    metrics = {"auc": 0.9, "accuracy": 0.8, "f1": 0.7, "precision": 0.6, "recall": 0.5, "threshold": 0.4}
    scores = (["a", "b"], ["a", "b"], [0, 1], [[0.8, 0.2], [0.3, 0.7]])
    results = [
        Result(protocol, 1, fold, "c", "s", "d", epochs, 0, 1.0, 5, metrics, metrics, *scores)
        for fold in range(1, num_folds + 1)
    ]
    return Row(name, protocol, results, num_folds + len(failures), dict.fromkeys(failures, "boom"))


def _comparison(cells, failed=None):
    names = {cell.candidate.name: cell.candidate.config.model.name for cell in cells}
    rows = [
        _row(name, "paper", 1, 15)
        if model == "transmil"
        else _row(name, "paper", 3, 25, ("x",) * (name == failed))
        for name, model in names.items()
    ]
    return Comparison("it", "digits", False, 40, 20, 3, "3-fold by case", (1,), rows, 1.0, 0)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_tables_have_the_papers_layout_and_say_what_each_row_used(number):
    cells = select(Ablation(), _base)
    cost = Cost(657_026, 4.04, 5.0, 2_576_980_378, "cuda", 1)
    costs = {cell.row: cost for cell in cells if cell.table == 2}
    made = grid(number, "paper", cells, _comparison(cells), costs)
    assert made.header[1:] == {
        1: ["Accuracy", "AUC", "F1-score"],
        2: ["AUC", "Para.", "Time", "Mem."],
    }.get(number, ["AB.", "Trans."])
    assert made.rows[0][0] == {1: "Max-pooling", 2: "AB-MIL"}.get(number, "Baseline")
    assert "PAPER PROTOCOL" in made.caption
    assert "3 folds x 1 seed, 25 epochs" in made.caption
    assert "1 fold x 1 seed, 15 epochs, 256 landmarks" in made.caption
    if number == 1:
        assert made.rows[0][1:] == ["80.00 +- 0.00", "90.00 +- 0.00", "70.00 +- 0.00"]
    if number == 2:
        assert made.rows[0][2:] == ["657K", "4.0s", "2.4G"]
        assert "Time: the training steps of an epoch on fold 1, one row at a time, GPU;" in made.caption
    assert ("class token drawn from N(0, 1)" in made.caption) == (number == 1)
    if number == 4:
        assert "AB. high 0.01, low 0.2, random 0.5" in made.caption


def test_a_cell_with_failed_runs_says_so():
    cells = select(Ablation(tables=(1,)), _base)
    made = grid(1, "paper", cells, _comparison(cells, failed="dsmil"), {})
    assert {row[0]: row[2] for row in made.rows}["DSMIL"] == "90.00 +- 0.00 (-1)"
    assert "this many runs of the cell failed" in made.caption
    out = io.StringIO()
    made.print(Console(file=out, width=80))
    assert re.search(
        r"^DSMIL( +90\.00 \+- 0\.00 \(-1\)| +[78]0\.00 \+- 0\.00 \(-1\)){3}$", out.getvalue(), re.MULTILINE
    )
    assert "this many" not in grid(1, "paper", cells, _comparison(cells), {}).caption
    assert rows_module.TITLES[1] in made.title


def test_a_cost_that_could_not_be_measured_leaves_a_gap_and_its_reason():
    cells = select(Ablation(tables=(2,)), _base)
    costs = {cell.row: Cost(657_026, 4.04, 5.0, 2_576_980_378, "cpu", 1) for cell in cells}
    costs["TransMIL"] = "MemoryError: no room"
    made = grid(2, "paper", cells, _comparison(cells), costs)
    assert {row[0]: row[2:] for row in made.rows}["TransMIL"] == ["-", "-", "-"]
    assert {row[0]: row[2:] for row in made.rows}["AB-MIL"] == ["657K", "4.0s", "2.4G"]
    assert made.caption.endswith("Cost of TransMIL: MemoryError: no room.")
    assert "not measured" in grid(2, "paper", cells, _comparison(cells), {}).caption


def test_tables_are_written_before_costs_are_measured_and_say_why_one_is_missing(tmp_path, monkeypatch):
    job = Ablation(home=tmp_path, name="it", tables=(1, 2), rows=("AB-MIL",))
    job.folder.mkdir(parents=True)
    cells, before = select(job, _base), []

    def measured(job, configs, *, data):
        before.append((job.folder / "tables.md").read_text())
        return dict.fromkeys(configs, "MemoryError: no room")

    monkeypatch.setattr(ablation, "compare", lambda job, candidates, *, data: _comparison(cells))
    monkeypatch.setattr(ablation, "measure_costs", measured)
    with pytest.raises(
        CrossValidationError, match=r"1 run of it failed.* cost of AB-MIL: MemoryError: no room"
    ):
        run_ablation(job, _base, data=tmp_path)
    assert "| AB-MIL | 90.00 +- 0.00 |     - |" in before[0]
    assert "Cost of AB-MIL: MemoryError" in (job.folder / "tables.md").read_text()
    body = json.loads((job.folder / "tables.json").read_text())
    assert body["cost_failures"] == {"cost of AB-MIL": "MemoryError: no room"}
    assert [(cell["auc"], cell["num_parameters"]) for cell in body["cells"]] == [(0.9, None), (0.9, None)]


def test_configurations_of_the_same_name_are_all_run(monkeypatch):
    short = _base("abmil").first_stage().override({"epochs": 3})
    monkeypatch.setitem(rows_module.SYSTEMS, "Short", "short")
    cells = select(
        Ablation(tables=(1,), rows=("AB-MIL", "Short")),
        lambda model: short if model == "short" else _base(model),
    )
    assert [(cell.row, cell.candidate.name, cell.candidate.config.epochs) for cell in cells] == [
        ("AB-MIL", "abmil", 200),
        ("Short", "abmil (2)", 3),
    ]


def test_settings_of_the_command_line_reach_every_row_that_has_them():
    job = Ablation.from_job(
        quick={},
        arguments=["--train.model.num-landmarks", "16", "--train.teacher.dropout", "--train.precision=bf16"],
    )
    cells = select(job, _base)
    assert {cell.candidate.config.precision for cell in cells} == {"bf16"}
    for config in (cell.candidate.config for cell in cells):
        assert config.teacher.dropout == (config.teacher.kind != "none")
        if config.model.name == "transmil":
            assert config.model.num_landmarks == 16
    assert len({cell.candidate.config.digest() for cell in cells}) == 27


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--train.masking.high.start", "0.1"],
            r"the tables themselves vary masking\.high\.start: leave it out",
        ),
        (["--train.model.name", "dsmil"], r"the tables themselves vary model\.name"),
        (
            ["--rows", "AB-MIL", "--tables", "1", "--train.model.num-landmarks", "3"],
            r"train\.model\.num_landmarks: none of these rows has this setting",
        ),
    ],
)
def test_settings_that_the_tables_vary_or_no_row_has_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        select(Ablation.from_job(quick={}, arguments=arguments), _base)


def test_the_caption_says_where_networks_are_not_the_authors_size():
    def base(model):
        changes = {} if model == "transmil" else {"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4}
        return _base(model).override(changes)

    cells = select(Ablation(), base)
    assert common(_comparison(cells), cells).endswith(
        " All networks but transmil, dtfd: width 128 (the authors' 512), learning rate 0.0005 (the authors' "
        "0.0002). dtfd: width 128 (the authors' 512), learning rate 0.0005 (the authors' 0.0001)."
    )
    plain = select(Ablation(), _base)
    assert "width" not in common(_comparison(plain), plain)
