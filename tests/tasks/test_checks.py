"""What is refused before the first step, and how the task of a data set is found."""

import json

import numpy as np
import pytest
from memory_bags import gaussian_bags
from task_bags import INFOS, config, task_bags

from mhimdist.config.train import TrainConfig, load_config
from mhimdist.data.splits import Split
from mhimdist.errors import CheckpointError, ConfigError, SplitError
from mhimdist.statistics import survival
from mhimdist.tasks import restored, task_of
from mhimdist.tasks.interface import Judged
from mhimdist.training.requirements import check_run, check_runs


def _checked(task: str, edit, key: str = "corn") -> None:
    bags = task_bags(INFOS[task].name)
    split = bags.holdout()
    edit(bags, bags.rows_of(split.train), bags.rows_of(split.validation), bags.rows_of(split.test))
    check_run(config("abmil", key), bags, split)


def _set(rows_of: int, column: int, value: float):
    def edit(bags, *sets) -> None:
        bags.targets_NK[sets[rows_of], column] = value

    return edit


@pytest.mark.parametrize(
    ("task", "edit", "message"),
    [
        ("regression", _set(0, 1, 4.0), "the train set: expected different values of size, got 4 for all 12"),
        ("regression", _set(2, 0, 4.0), "the test set: .* its R2 is undefined"),
        (
            "survival",
            _set(0, 1, 0),
            "the train set: no event among 12 bags, all are censored: nothing can be",
        ),
        ("survival", _set(1, 1, 0), "the validation set: no event among .* no pair can be compared"),
        ("survival", _set(2, 0, 3.0), "the test set: no bag was seen for longer than one with an event"),
        ("multilabel", _set(0, 1, 1), "the train set: .* got bags of one kind only for invasive"),
    ],
)
def test_targets_that_cannot_teach_or_judge_are_refused_by_set(task, edit, message):
    with pytest.raises(SplitError, match=message):
        _checked(task, edit, {"survival": "nll"}.get(task, task))


def test_one_label_of_one_kind_may_select_but_not_all():
    def both(bags, train, validation, test) -> None:
        bags.targets_NK[validation] = 1.0

    _checked("multilabel", _set(1, 0, 1), "multilabel")
    with pytest.raises(SplitError, match=r"the validation set: .* got none: no AUC is defined"):
        _checked("multilabel", both, "multilabel")


def test_a_grade_without_a_training_bag_is_refused_with_the_name_of_the_run():
    bags = task_bags("ordinal")
    split = bags.holdout()
    no_top = tuple(key for key in split.train if bags.labels_N[bags.keys.index(key)] < 2)
    lacking = Split(no_top, split.validation, split.test)
    with pytest.raises(SplitError, match="fold 2: the train set has no case of class-2"):
        check_runs([("fold 1", config(), split), ("fold 2", config(), lacking)], bags)


def test_a_case_on_two_sides_is_refused_for_every_task():
    bags = task_bags("survival")
    split = bags.holdout()
    bags.cases = ("one",) * len(bags.cases)
    with pytest.raises(SplitError, match="case 'one' is in both"):
        check_run(config("abmil", "nll"), bags, split)


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        ("clam_sb", "survival", "clam_sb clusters instances by class, and survival has no classes"),
        ("clam_mb", "ordinal", r"clam_mb has one branch and one output per class, and ordinal has 2 output"),
    ],
)
def test_clam_names_the_tasks_that_it_is_not_defined_for(model, task, message):
    bags = task_bags(task)
    settings = load_config({"model": {"name": model}, "teacher": {"kind": "none"}, "loss": {"alpha": 0}})
    with pytest.raises(ConfigError, match=message):
        check_run(settings, bags, bags.holdout())


def test_class_weights_need_classes():
    bags = task_bags("regression")
    settings = config("abmil", "regression", **{"loss.class_weights": (1.0, 2.0)})
    with pytest.raises(ConfigError, match="expected none, as regression has no classes"):
        check_run(settings, bags, bags.holdout())


def test_auto_is_what_the_data_say_and_a_name_must_agree_with_them():
    survival, classes = task_bags("survival"), gaussian_bags()
    assert task_of(survival, TrainConfig().task).name == "survival"
    assert task_of(classes, TrainConfig().task).name == "classification"
    assert (
        task_of(classes, config("abmil", "cumulative").task).name == "ordinal"
    )  # classes in ascending order
    with pytest.raises(
        ConfigError, match="labelled for survival with the columns time, event; expected surv"
    ):
        task_of(survival, load_config({"task": {"name": "regression"}}).task)


def test_only_a_task_that_is_not_auto_is_part_of_a_recipe():
    plain = TrainConfig()
    assert "task" not in plain.recipe()
    cox = plain.override({"task.name": "survival", "task.survival_loss": "cox"})
    assert cox.recipe()["task"]["survival_loss"] == "cox"
    assert cox.digest() != plain.digest()
    assert cox.override({"task.num_bins": 4}).task == cox.task  # without the name again
    assert cox.first_stage().task == cox.task


def test_a_wrong_setting_of_a_task_is_named_with_the_valid_ones():
    with pytest.raises(ConfigError, match=r"task.nam_bins: unknown key \(did you mean num_bins\?\)"):
        load_config({"task": {"name": "survival", "nam_bins": 3}})
    with pytest.raises(ConfigError, match=r"task.name: no task 'cox'; valid: auto, classification, ordinal"):
        load_config({"task": {"name": "cox"}})
    with pytest.warns(match="no effect: task.num_bins: survival_loss is cox"):
        load_config({"task": {"name": "survival", "survival_loss": "cox", "num_bins": 3}})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("no_such_module:Task", "expected module:Class that can be imported here"),
        ("json:JSONDecoder", "expected a class derived from mhimdist.tasks.Task"),
    ],
)
def test_an_entry_must_be_a_task(entry, message):
    settings = load_config({"task": {"name": "custom", "entry": entry}})
    with pytest.raises(ConfigError, match=message):
        task_of(gaussian_bags(), settings.task)


def test_a_task_is_restored_from_its_record_and_tells_no_times_of_patients():
    bags = task_bags("survival")
    task = task_of(bags, config("abmil", "nll").task).after(bags, np.arange(20))
    record = task.record()
    assert record["learnt"].keys() == {"edges", "last", "grid", "uncensored"}
    times_N, events_N = bags.targets_NK[:20].T
    lost = {*times_N[events_N == 0].tolist(), times_N.max()}
    assert set(record["learnt"]["uncensored"]["times"]) <= lost, "no time of an event, apart from the last"
    again = restored(json.loads(json.dumps(record)), ())
    assert (again.columns, again.times, again.classes) == (task.columns, task.times, task.classes)
    exact = survival.censoring(times_N, events_N)
    at = np.linspace(0, 1.2 * times_N.max(), 999)
    assert (again.censoring.at(at) == exact.at(at)).all()
    with pytest.raises(CheckpointError, match="record of a task of this release"):
        restored({"name": "survival"}, ())


def test_networks_of_other_bins_are_averaged_at_the_same_times():
    bags = task_bags("survival")
    plain = task_of(bags, config("abmil", "nll").task)
    first, second = plain.after(bags, np.arange(10)), plain.after(bags, np.arange(10, 30))
    predictions = np.array([[-2.0, 0.9, 0.6, 0.4, 0.1]])
    aligned = second.aligned(predictions, first)
    knots = [0.0, *second.times]
    np.testing.assert_allclose(aligned[0, 1:], np.interp(first.times, knots, [1, *predictions[0, 1:]]))
    assert aligned[0, 0] == pytest.approx(-aligned[0, 1:].sum())
    assert second.aligned(predictions, second) is predictions


def test_classes_as_functions_of_weights_equal_their_metrics():
    random = np.random.default_rng(0)
    for num_classes in (2, 3):
        raw = random.random((30, num_classes))
        judged = Judged.of(
            random.integers(num_classes, size=30), np.zeros((30, 0)), raw / raw.sum(1, keepdims=True)
        )
        task = restored(None, list(map(str, range(num_classes))))
        fitted = task.fit(judged)
        plain, weighed = task.metrics(judged, fitted), task.weighed(judged, fitted).once()
        for name in task.headings:
            assert weighed[name] == pytest.approx(plain[name], abs=1e-12), name
