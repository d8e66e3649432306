import copy
import subprocess
import sys
import warnings

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mhimdist.config.presets import preset
from mhimdist.search import proposals, samplers, storage, study
from mhimdist.search.drafts import drafts
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.search.study import SweepStudy

BASE = preset("c16", "abmil").override({"epochs": 3})


def conditional(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)
    if s.branch("masking.strategy", ["HAM", "R-HAM"]) == "R-HAM":
        s.uniform("masking.random.start", 0.1, 0.8)
    else:
        s.fix("masking.random", 0.0)
    s.keep_at_least(0.4)  # so that some draws are refused


def numbers(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)
    s.uniform("loss.alpha", 0.0, 1.0)
    s.require(lambda config: config.loss.alpha < 0.8, "have an alpha below .8")


def _sweep_study(tmp_path, space, **options) -> SweepStudy:
    sweep = Sweep(
        name="test", num_startup=4, grace_epochs=1, num_trials=99, train=BASE, warm_presets=False, **options
    )
    return SweepStudy(sweep, space, proposals.examine(space, BASE), storage.sqlite_url(tmp_path / "study.db"))


def _by_a_copy(opened: SweepStudy) -> tuple[dict, dict]:
    """Parameters and attributes of the next proposal, drawn in a whole copy of the study."""
    trials = opened.trials
    directions = opened._study.directions
    whole = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler())
    whole.add_trials(trials)
    tried = {proposals.key(trial.params) for trial in trials}
    for attempt in range(samplers.MAX_DRAWS):
        whole.sampler = samplers.make(opened.sweep, len(trials), attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = whole.ask()
            drawn = proposals.draw(opened.space, BASE, trial)
        if drawn.unmet is None and proposals.key(drawn.params) not in tried:
            return drawn.params, whole.trials[trial.number].system_attrs
        whole.tell(trial, state=TrialState.FAIL)
    raise AssertionError("no draw was new")


def _end(opened: SweepStudy, number: int) -> None:
    """End a trial in one of the possible ways, or leave it running."""
    value = 1 - abs(opened.config(number).masking.high.start - 0.05) - number % 7 / 100
    if number % 5 < 3:
        for epoch in (1, 2):
            opened.report(number, epoch, value - 0.2 / epoch, {}, may_stop=False)
    if number % 5 in (0, 1):
        opened.complete(number, value, None if opened.sweep.against == "none" else number % 3)
    elif number % 5 == 2:
        opened.prune(number, "by hand")
    elif number % 10 == 3:
        opened.fail(number, "by hand")


@pytest.mark.long
@pytest.mark.parametrize(
    ("space", "options"),
    [
        (conditional, {}),
        pytest.param(conditional, {"against": "kept_share", "scheduler": "none"}, marks=pytest.mark.slow),
        pytest.param(numbers, {"sampler": "cmaes"}, marks=pytest.mark.slow),
        pytest.param(numbers, {"sampler": "random"}, marks=pytest.mark.slow),
    ],
)
def test_proposals_equal_those_in_a_whole_copy_of_the_study(tmp_path, space, options):
    opened = _sweep_study(tmp_path, space, **options)
    states = set()
    for i in range(36):
        expected = _by_a_copy(opened)
        before = copy.deepcopy(opened.trials)
        number = opened.propose().number
        assert opened.trials[:-1] == before
        assert (opened.trials[-1].params, opened.trials[-1].system_attrs) == expected
        if i == 9:  # of another program: one trial that runs, one that is requested
            other = optuna.load_study(study_name="test", storage=opened.url)
            ask = other.ask(
                {
                    "masking.high.start": proposals.draw(
                        space, BASE, proposals.fixed(expected[0])
                    ).distributions["masking.high.start"]
                }
            )
            assert ask.number == 10
        if i == 20:
            other.enqueue_trial(expected[0] | {"masking.high.start": 0.0625})
        if i == 21:
            assert opened.trials[-1].params["masking.high.start"] == 0.0625
        if i == 27:
            other.tell(ask, state=TrialState.FAIL)
        if i % 4 == 3:
            opened = _sweep_study(tmp_path, space, **options)
        _end(opened, number)
        states |= {trial.state for trial in opened.trials}
    assert states == set(TrialState)


@pytest.mark.long
def test_what_another_process_has_done_counts_in_the_next_proposal(tmp_path):
    opened = _sweep_study(tmp_path, conditional)
    for _ in range(12):
        _end(opened, opened.propose().number)
    running = [trial.number for trial in opened.trials if trial.state == TrialState.RUNNING]
    alone, _ = _by_a_copy(opened)
    code = (
        "import optuna, sys; study = optuna.load_study(study_name='test', storage=sys.argv[1]);"
        "[study.tell(int(number), .99) for number in sys.argv[2:]];"
        "study.add_trials(study.trials[:3])"
    )
    subprocess.run([sys.executable, "-c", code, opened.url, *map(str, running)], check=True)
    expected, _ = _by_a_copy(opened)
    assert expected != alone
    assert opened.propose().number == 15
    assert opened.trials[-1].params == expected


def test_drafts_read_a_record_in_place_and_leave_no_trace_in_it():
    record = optuna.create_study(direction="maximize")
    record.ask().suggest_float("x", 0, 1)
    trial = record.ask()
    trial.report(0.5, 1)
    record.tell(trial, 0.5)
    record.enqueue_trial({"x": 0.25})
    before = record.get_trials()
    trials = record.get_trials(deepcopy=False)
    inside = drafts(trials, record.directions, len(trials))
    seen = inside.get_trials(deepcopy=False)
    assert all(found is mine for found, mine in zip(seen, trials, strict=True))
    asked_for, own = inside.ask(), inside.ask()
    assert (asked_for.number, own.number) == (2, 3)
    assert asked_for.suggest_float("x", 0, 1) == 0.25
    own.suggest_float("x", 0, 1)
    inside.tell(asked_for, state=TrialState.FAIL)
    inside.tell(own, state=TrialState.FAIL)
    states = [trial.state for trial in inside.trials]
    assert states == [TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert record.get_trials() == before
    assert all(found is mine for found, mine in zip(record.get_trials(deepcopy=False), trials, strict=True))
    with pytest.raises(NotImplementedError, match="drawn and marked as failed"):
        inside.set_user_attr("a", 1)


def test_drafts_ask_for_a_parameter_in_one_way_only():
    inside = drafts([], [StudyDirection.MAXIMIZE], 0)
    inside.ask().suggest_float("x", 0, 1)
    with pytest.raises(ValueError, match="different distribution kind"):
        inside.ask().suggest_int("x", 0, 1)


class _Counting(list[FrozenTrial]):
    """Trials that count how often one of them was looked at."""

    looks = 0

    def __getitem__(self, place):
        self.looks += 1
        return super().__getitem__(place)

    def __iter__(self):
        raise AssertionError("all are looked at")


def test_what_was_tried_is_known_without_a_look_at_every_trial(tmp_path):
    opened = _sweep_study(tmp_path, numbers, sampler="random")
    for i in range(12):
        opened.complete(opened.propose().number, i / 12, None)
    opened.propose()
    known = study._Unsampled([opened.trials[3].params, {"loss.alpha": 2.0}])
    trials = _Counting(opened.trials)
    known.look_at(trials)
    assert (known.num, known.num_left, known.next) == (2, 1, {"loss.alpha": 2.0})
    trials.looks = 0
    known.look_at(trials)
    assert 0 < trials.looks <= 2  # the running one
    assert all(known.is_tried(trial.params) for trial in opened.trials)
    assert not known.is_tried({"loss.alpha": 2.0})
