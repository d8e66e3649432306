import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import auc_runs, auc_table, time_to_auc
from benchmarks.auc_runs import ONE, PACKS, SETTINGS


def _measured(setting: str, aucs: Sequence[float], *, seed: int = 0, stage_s: float = 0.0) -> dict[str, Any]:
    """A run whose epochs take 2 s of the processor and 5 s on the wall."""
    return {
        "data": "planted",
        "network": "mhim" if stage_s else "abmil",
        "setting": setting,
        "seed": seed,
        "clock": "processor_s",
        "first_stage": {"processor_s": stage_s, "wall_s": stage_s},
        "curve": [
            {"auc": auc, "processor_s": 2.0 * number, "wall_s": 5.0 * number}
            for number, auc in enumerate(aucs, 1)
        ],
    }


def test_the_target_is_a_share_of_the_best_of_one_bag_a_step() -> None:
    one = _measured(ONE, [0.6, 0.895, 0.9])
    slow = _measured("samples", [0.5, 0.88, 0.892, 0.92])
    (row, other) = auc_table.summary([one, slow])
    assert (row["setting"], row["epochs"], row["processor_s"], row["wall_s"]) == (ONE, 2, 4.0, 10.0)
    assert row["ratio"] == 1
    assert (other["epochs"], other["processor_s"], other["ratio"], other["best_auc"]) == (3, 6.0, 1.5, 0.92)


def test_a_row_is_of_the_seeds_that_reached_their_own_targets() -> None:
    runs = [
        *(_measured(ONE, [0.5, 0.9], seed=seed) for seed in range(3)),
        _measured(PACKS, [0.9], seed=0),
        _measured(PACKS, [0.5, 0.6, 0.95], seed=1),
        _measured(PACKS, [0.5, 0.6], seed=2),
    ]
    _, row = auc_table.summary(runs)
    assert (row["reached"], row["seeds"]) == (2, 3)
    assert row["seconds_of_each"] == [2.0, 6.0]
    assert (row["processor_s"], row["ratio"]) == (4.0, 1.0)


def test_a_setting_that_never_reaches_the_target_has_no_seconds() -> None:
    rows = auc_table.summary([_measured(ONE, [0.9]), _measured("samples", [0.8, 0.85])])
    assert rows[1]["processor_s"] is rows[1]["ratio"] is rows[1]["epochs"] is None
    assert "| samples | 0.850 | 0 of 1 | not reached | not reached |" in "\n".join(auc_table.table(rows))


def test_masked_training_is_charged_with_its_first_stage() -> None:
    (row,) = auc_table.summary([_measured(ONE, [0.9], stage_s=30.0)])
    assert (row["processor_s"], row["wall_s"]) == (32.0, 35.0)


def test_with_a_gpu_the_seconds_on_the_wall_come_first() -> None:
    runs = [_measured(ONE, [0.9]), _measured("samples", [0.5, 0.9])]
    rows = auc_table.summary([{**run, "clock": "wall_s"} for run in runs])
    assert (rows[1]["seconds_of_each"], rows[1]["ratio"], rows[1]["seconds_an_epoch"]) == ([10.0], 2.0, 5.0)
    _, head, _, _, row = list(auc_table.table(rows))
    assert "epochs | wall, s (each seed) | processor, s | to one bag a step | wall, s an epoch" in head
    assert row == "| samples | 0.900 | 1 of 1 | 2 | 10.0 (10.0) | 4.0 | 2.00 | 5.00 |"


def test_rows_without_one_bag_a_step_have_no_target() -> None:
    assert auc_table.summary([_measured("samples", [0.9])]) == []


def _main(folder: Path, *arguments: str) -> None:
    few = "--data", "planted", "--settings", "samples, several, rate by sqrt", PACKS
    time_to_auc.main(["--quick", "--json", "--folder", str(folder), *few, *arguments])


def test_a_killed_benchmark_continues_with_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, train = [], time_to_auc.trained

    def dies_in_the_third(run: auc_runs.Run, *arguments: Any) -> Any:
        trained.append((run.network, run.setting))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(run, *arguments)

    monkeypatch.setattr(time_to_auc, "trained", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        _main(tmp_path)
    capsys.readouterr()
    _main(tmp_path, "--only-table")
    partly = json.loads(capsys.readouterr().out)
    assert {(row["network"], row["setting"]) for row in partly["rows"]} == {("abmil", ONE), ("mhim", ONE)}

    _main(tmp_path)
    found = json.loads(capsys.readouterr().out)
    several = "samples, several, rate by sqrt"
    left = [("abmil", several), ("mhim", several), ("abmil", PACKS)]
    # The third run is trained again, the first two are not.
    assert trained == [("abmil", ONE), ("mhim", ONE), left[0], *left]
    assert found["runs"][:2] == partly["runs"]
    assert [(row["network"], row["setting"]) for row in found["rows"]] == [
        *(("abmil", setting) for setting in (ONE, several, PACKS)),
        *(("mhim", setting) for setting in (ONE, several)),
    ]
    for run in found["runs"]:
        seconds = [epoch["processor_s"] for epoch in run["curve"]]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
        assert all(0 <= epoch["auc"] <= 1 for epoch in run["curve"])
        assert (run["first_stage"]["processor_s"] > 0) == (run["network"] == "mhim")


def test_every_setting_changes_what_its_name_says() -> None:
    data = auc_runs.DATA["planted"]
    runs = auc_runs.runs({"planted": data}, ["abmil", "mhim"], SETTINGS, 1)
    assert len(runs) == 2 * len(SETTINGS) - 1  # no masks on packs
    by_setting = {run.setting: run.config for run in runs if run.network == "abmil"}
    assert by_setting[ONE].bags_per_step == 1
    rules = {"rate as for one": "none", "rate by sqrt": "sqrt", "rate linear": "linear"}
    for words, rule in rules.items():
        config = by_setting[f"several, {words}"]
        assert (config.bags_per_step, config.optimizer.rate_rule) == (4, rule)
    assert by_setting["samples"].instances_per_bag == 2048
    assert by_setting["one bag a step, bf16"].precision == "bf16"
    assert len({run.name for run in runs}) == len(runs)
