"""A sweep whose space chooses among feature sets, without Ray."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from encoder_folders import shard_encoders, write_encoders
from written_runs import MASKED, write_cross_validation

from mhimdist.comparison.compare import compare
from mhimdist.comparison.entries import read_entries
from mhimdist.config.train import load_config
from mhimdist.cross_validation.folds import make_fold
from mhimdist.cross_validation.options import Candidate, CrossValidation
from mhimdist.data.opening import open_bags, with_features
from mhimdist.data.splits import Split
from mhimdist.errors import ComparisonError, ConfigError
from mhimdist.paper.ablation import Ablation
from mhimdist.search import proposals
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep import calibration, finals, nested
from mhimdist.sweep.calibration import calibrate
from mhimdist.sweep.encoders import rows_told_apart, told_apart
from mhimdist.sweep.plan import Calibration
from mhimdist.sweep.run import _digest, _feature_sets
from mhimdist.sweep.task import Task
from mhimdist.sweep.trial import TrialRun
from mhimdist.training.first_stage import made_with
from mhimdist.training.folds import Fold, fold_folder
from mhimdist.training.student import load_student

BASE = load_config(
    {
        "features": "uni",
        "model": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4},
        "masking": {"high": {"start": 0.2}},
        "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
        "epochs": 1,
        "device": "cpu",
    }
)
SETS = ["uni", "virchow2", "uni+virchow2"]


def space(s: Space) -> None:
    s.choice("features", SETS)
    s.uniform("masking.high.start", 0.05, 0.3)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_encoders(tmp_path, "uni", "virchow2")
    shard_encoders(tmp_path, "uni", "virchow2")
    return tmp_path / "shards"


@pytest.fixture
def task(shards: Path, tmp_path: Path) -> Task:
    keys = open_bags(shards, None, "uni").keys
    by_name = sorted(keys)
    split = Split(tuple(by_name[:2]), tuple(by_name[2:4]), tuple(by_name[4:]))
    sweep = Sweep(home=tmp_path, name="it", train=BASE)
    sets = ("uni+virchow2", "virchow2", "uni")
    return Task(
        sweep, [split], shards, tmp_path / "trials", tmp_path / "stop", feature_sets=dict.fromkeys(sets)
    )


def test_the_widest_of_the_searched_sets_comes_first(shards: Path) -> None:
    bags, facts = open_bags(shards, None, "uni"), proposals.examine(space, BASE)
    assert _feature_sets(facts, bags) == ("uni+virchow2", "virchow2", "uni")
    fixed = proposals.examine(lambda s: s.uniform("masking.high.start", 0.05, 0.3), BASE)
    assert _feature_sets(fixed, bags) == ()
    assert _digest(bags, ()) == bags.digest != _digest(bags, SETS)
    with pytest.raises(ConfigError, match="no feature set 'conch'"):
        _feature_sets(proposals.examine(lambda s: s.choice("features", ["uni", "conch"]), BASE), bags)


def test_the_calibration_is_of_the_widest(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(sweep, config, bags, split) -> Calibration:
        seen.append((config.features, bags.num_features))
        return Calibration(1.0, 1, 0, 0, "cpu")

    monkeypatch.setattr(calibration, "_measure", measure)
    calibrate(task)
    assert seen == [("uni+virchow2", 20)]
    calibrate(dataclasses.replace(task, feature_sets=dict.fromkeys(("virchow2", "uni"))))
    assert seen[1:] == [("virchow2", 12)]


def test_trials_of_a_process_read_each_its_own_features(task: Task, tmp_path: Path) -> None:
    launcher = task.launcher()
    for number, features in enumerate([*SETS, "uni"]):
        config = BASE.override({"features": features})
        folder = fold_folder(tmp_path / f"{number}", 1, config.seed)
        run = TrialRun([Fold("it", config, task.splits[0], 1, folder, is_tested=False)], 1, launcher)
        assert run.next_epoch().is_finished
        run.close()
        network = load_student(folder)
        width = with_features(task.bags(), features).num_features
        assert next(iter(network.parameters())).shape[-1] == width
    stages = list(task.sweep.first_stages.glob("*/state.json"))
    assert len(stages) == len(SETS)  # the last trial finds the first one's


def test_identity_is_that_of_earlier_releases_without_a_name_and_tells_names_apart(task: Task) -> None:
    plain = BASE.model_copy(update={"features": None})
    assert "features" not in plain.recipe()
    assert BASE.recipe()["features"] == BASE.first_stage().recipe()["features"] == "uni"

    bags, digests = task.bags(), set()
    for features in SETS:
        candidate = Candidate("it", BASE.override({"features": features}))
        digest, fold = make_fold(
            candidate, task.splits[0], 1, 1, "strict", bags, task.trials, torch.device("cpu")
        )
        digests.add(digest)
        assert made_with(fold.config, torch.device("cpu"))["config"]["features"] == features
    assert len(digests) == len(SETS)


def test_features_is_an_option_of_every_job() -> None:
    job = CrossValidation.from_command_line(["--features", "uni+virchow2", "--train.epochs", "3"])
    assert (job.train.features, job.train.epochs) == ("uni+virchow2", 3)
    assert [each.name for each in job.candidates] == ["MHIM (abmil), uni+virchow2", "abmil, uni+virchow2"]
    assert (
        Sweep.from_command_line(["--features", "uni"], train=BASE.override({"epochs": 7})).train.epochs == 7
    )
    assert CrossValidation.from_command_line([]).train.features is None
    assert Ablation.from_command_line(["--features", "uni"]).overlay == {"features": "uni"}
    with pytest.raises(ConfigError, match="features"):
        CrossValidation.from_command_line(["--features", "uni+"])


def written(folder: Path, **features: float) -> Path:
    """Final runs of a sweep, one configuration per feature set, with shifts between their scores."""
    for name, shift in features.items():
        made = write_cross_validation(
            folder / name,
            {name: (MASKED.override({"features": name}), shift)},
            holder="final",
            with_table=False,
            data_digest=(name[0] * 64),
        )
        for fold in (made / "final").iterdir():
            (folder / "final").mkdir(exist_ok=True)
            fold.rename(folder / "final" / f"{fold.name}-{name}")
        shutil.rmtree(made)
    return folder


def test_paired_tests_tell_the_sets_of_a_sweep_apart(tmp_path: Path) -> None:
    folder = written(tmp_path / "sweep", uni=0.0, virchow2=2.5)
    configs = [MASKED.override({"features": name, "seed": 9}) for name in ("virchow2", "uni", "virchow2")]
    (sentence,) = told_apart(folder, configs)
    assert "MHIM (abmil), virchow2" in sentence
    assert "MHIM (abmil), uni" in sentence
    assert (folder / "comparison.json").exists()
    assert "virchow2" in (folder / "comparison.md").read_text()
    (alone,) = told_apart(folder, configs[:1])
    assert alone == "All completed trials read virchow2: no other features to compare with."
    (lost,) = told_apart(tmp_path, configs)
    assert lost.startswith("The feature sets are not compared:")


def test_sets_of_one_data_set_are_compared_although_their_digests_differ(tmp_path: Path) -> None:
    one, two = (
        write_cross_validation(
            tmp_path / name,
            {"MHIM (abmil)": (MASKED.override({"features": features} if features else {}), 0.5)},
            data_digest=name[0] * 64,
        )
        for name, features in (("a", "uni"), ("b", "virchow2"))
    )
    comparison = compare(one, two)
    assert any("reads other features of the same slides" in note for note in comparison.notes)
    assert [entry.features for entry in read_entries(one)] == ["uni"]
    other = write_cross_validation(tmp_path / "c", {"MHIM (abmil)": (MASKED, 0.5)}, data_digest="c" * 64)
    with pytest.raises(ComparisonError, match="expected one data set"):
        compare(one, other)


def test_the_best_trial_of_every_set_is_tested(task: Task) -> None:
    order = ["virchow2", "virchow2", "uni", "uni+virchow2", "uni"]
    trials = [SimpleNamespace(number=number) for number in range(len(order))]
    study = SimpleNamespace(config=lambda number: BASE.override({"features": order[number]}))
    more = finals._best_of_other_features(trials, trials[:2], study, task)
    assert [trial.number for trial in more] == [2, 3]
    assert (
        finals._best_of_other_features(trials, trials[:1], study, dataclasses.replace(task, feature_sets={}))
        == []
    )


def test_outer_folds_that_chose_other_features_are_one_row(tmp_path: Path) -> None:
    uni = MASKED.override({"features": "uni"})
    configs = {"a": (uni, 1.0), "b": (uni.override({"epochs": 3}), 2.0)}
    run = write_cross_validation(tmp_path / "run", configs, protocol="nested", seeds=(1,))
    other = run / "folds" / "fold-2-seed-1-0nested"
    for name, changes in (("config", {"features": "virchow2"}), ("result", {"data_digest": "e" * 64})):
        file = other / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    first, second = read_entries(run)
    assert (first.name, first.features, len(first.networks)) == ("a", "uni or virchow2", 3)
    assert second.features == "uni"
    assert compare(run, num_resamples=100).pairs
    config = other / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"features": "uni"}))
    with pytest.raises(ComparisonError, match="its folds are of 2 data sets"):
        read_entries(run)


def test_a_nested_sweep_has_a_row_per_set_that_all_outer_folds_have_tried(tmp_path: Path) -> None:
    outer = [SimpleNamespace(of_features={"uni": [1, 2], "virchow2": [3], "uni+virchow2": [4]})]
    assert list(nested._of_features(outer)) == ["uni", "uni+virchow2", "virchow2"]
    outer.append(SimpleNamespace(of_features={"virchow2": [5], "uni": [6]}))
    assert nested._of_features(outer) == {"uni": [1, 2, 6], "virchow2": [3, 5]}
    outer.append(SimpleNamespace(of_features={"uni": [7]}))
    assert nested._of_features(outer) == {}
    folder = written(tmp_path / "sweep", uni=0.0, virchow2=2.5)
    names = [entry.name for entry in read_entries(folder)]
    (sentence,) = rows_told_apart(folder, names)
    assert all(name in sentence for name in names)
    assert (folder / "comparison.md").exists()
    assert rows_told_apart(folder, names[:1]) == []
    (lost,) = rows_told_apart(tmp_path, names)
    assert lost.startswith("The feature sets are not compared:")
