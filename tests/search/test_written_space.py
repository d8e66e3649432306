"""A space as data is the space of the function that says the same: same digest, same proposals."""

import runpy
from pathlib import Path

import pytest

from mhimdist.config.presets import PRESETS, preset
from mhimdist.config.run_file import SettingError
from mhimdist.config.yaml_nodes import parse, typed
from mhimdist.search.options import Sweep
from mhimdist.search.proposals import draw, draws_alike, examine, fixed
from mhimdist.search.space import BaseValues, Space
from mhimdist.search.space_text import lines_of, starting_space
from mhimdist.search.storage import sqlite_url
from mhimdist.search.study import SweepStudy
from mhimdist.search.traced_space import traced
from mhimdist.search.written_space import WrittenSpace

ROOT = Path(__file__).parent.parent.parent
BASE = preset("c16", "abmil")
TUNE_C16 = """
masking.high: {schedule: [0.002, 0.2], log: true}
masking.high_pool_share: {choice: [0.25, 0.5, 1.0]}
masking.strategy:
  branch:
    HAM:
      masking.low: {fix: 0.0}
      masking.random: {fix: 0.0}
    L-HAM:
      masking.low: {schedule: [0.1, 0.8]}
      masking.random: {fix: 0.0}
    R-HAM:
      masking.low: {fix: 0.0}
      masking.random: {schedule: [0.1, 0.7]}
    LR-HAM:
      masking.low: {schedule: [0.1, 0.8]}
      masking.random: {schedule: [0.1, 0.7]}
keep_at_least: 0.1
loss.alpha: {uniform: [1e-2, 1], log: true}
loss.temperature: {uniform: [5e-2, 1.0], log: true}
teacher.momentum.start: {choice: [0.99, 0.997, 0.999, 0.9997, 0.9999]}
teacher.momentum.kind: {choice: [constant, cosine]}
"""


def written(text: str) -> WrittenSpace:
    return WrittenSpace(typed(parse(text.encode(), "space.yaml")))


@pytest.fixture(scope="module")
def job():
    return runpy.run_path(str(ROOT / "jobs" / "tune_c16.py"))


@pytest.fixture(scope="module")
def facts(job):
    return examine(job["space"], job["BASE"])


def _proposals(space, base, facts, folder) -> list[dict]:
    """The parameters of 20 trials, of which TPE models 5."""
    folder.mkdir()
    sweep = Sweep(home=folder, train=base, num_trials=20, num_startup=15, warm_presets=False)
    study = SweepStudy(sweep, space, facts, sqlite_url(folder / "study.db"), [facts.base_params])
    for number in range(20):
        study.complete(study.propose().number, (7 * number % 20) / 20, None)
    return [trial.params for trial in study.trials]


def test_it_gets_the_proposals_of_the_function(job, facts, tmp_path):
    space = written(TUNE_C16)
    ours = _proposals(space, job["BASE"], facts, tmp_path / "data")
    assert ours == _proposals(job["space"], job["BASE"], facts, tmp_path / "function")
    assert len({str(params) for params in ours}) == 20


def test_the_space_of_a_job_in_yaml_has_its_digest(job, facts):
    assert examine(written(TUNE_C16), job["BASE"]) == facts


def test_a_function_is_traced_to_the_same_data(job, facts):
    tree = traced(job["space"], job["BASE"], facts)
    assert WrittenSpace(tree).tree == typed(parse("\n".join(lines_of(tree)).encode(), "x"))
    assert examine(WrittenSpace(tree), job["BASE"]).digest == facts.digest
    assert tree == starting_space(BASE)


def test_choices_may_have_settings_below_them():
    def space(s: Space) -> None:
        model = s.choice("model.name", ["abmil", "transmil"])
        if model == "transmil":
            if s.choice("model.num_heads", [4, 8]) == 4:
                s.uniform("model.attention_dropout", 0.0, 0.3)
        else:
            s.choice("model.gated", [True, False])
        if s.choice("epochs", [100, 200]) == 100:
            s.uniform("loss.alpha", 0.05, 0.5)
        s.integer("bags_per_step", 1, 8, log=True)
        s.choice("features", [None, "uni"])

    data = written("""
model.name:
  choice:
    abmil:
      model.gated: {choice: [true, false]}
    transmil:
      model.num_heads:
        choice:
          4:
            model.attention_dropout: {uniform: [0.0, 0.3]}
          8:
epochs:
  choice:
    100:
      loss.alpha: {uniform: [0.05, 0.5]}
    200:
bags_per_step: {integer: [1, 8], log: true}
features: {choice: [none, uni]}
""")
    facts = examine(space, BASE)
    assert examine(data, BASE) == facts
    tree = traced(space, BASE, facts)
    assert tree is not None
    text = "\n".join(lines_of(tree))
    assert "\n            4:\n" in text
    assert examine(written(text), BASE).digest == facts.digest


def _on_a_number(s: Space) -> None:
    if s.uniform("masking.high.start", 0.005, 0.2, log=True) > 0.05:
        s.uniform("teacher.momentum.start", 0.99, 0.9999)


def _with_a_condition_of_its_own(s: Space) -> None:
    s.choice("optimizer.decay", ["cosine", "constant"])
    s.require(lambda config: config.epochs > 3, "train for long")


def _with_a_product(s: Space) -> None:
    s.fix("loss.temperature", s.uniform("loss.alpha", 0.05, 0.5) * 2)


@pytest.mark.parametrize("space", [_on_a_number, _with_a_condition_of_its_own, _with_a_product])
def test_a_function_that_data_cannot_say_is_not_traced(space):
    assert traced(space, BASE, examine(space, BASE)) is None


def test_another_floor_draws_otherwise(job, facts):
    other = written(TUNE_C16.replace("keep_at_least: 0.1", "keep_at_least: 0.2"))
    assert not draws_alike(other, job["BASE"], facts)
    assert draws_alike(written(TUNE_C16), job["BASE"], facts)


@pytest.mark.parametrize(("dataset", "model"), PRESETS)
def test_every_starting_space_holds_its_base(dataset, model):
    base = preset(dataset, model)
    space = WrittenSpace(starting_space(base))
    values = BaseValues(base)
    space(Space(values))  # refuses a base that is outside
    first = draw(space, base, fixed(values.params))
    assert first.config == base or first.config.digest() == base.digest()
    assert first.unmet is None


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("masking.hihg: {schedule: [0.1, 0.2]}", "masking.hihg", r"did you mean masking\.high\?"),
        ("gated: {choice: [true]}", "gated", r"no setting .* \(did you mean model\.gated\?\)"),
        ("loss.alpha: {unifrom: [1, 2]}", "loss.alpha.unifrom", r"unknown key \(did you mean uniform\?\)"),
        ("loss.alpha: {uniform: [2, 1]}", "loss.alpha", r"expected \[low, high\], got \[2, 1\]"),
        ("loss.alpha: {uniform: [1]}", "loss.alpha.uniform", "at least 2 items"),
        ("loss.alpha: {uniform: [a, 1]}", "loss.alpha.uniform.0", "valid number, got a"),
        ("loss.alpha: {uniform: [-1, 1]}", "loss.alpha.uniform.0", "greater than or equal to 0, got -1"),
        ("loss.alpha: {uniform: [0, 1], log: true}", "loss.alpha", "a range above 0 with log"),
        ("loss.alpha: {uniform: [0, 1], fix: 1}", "loss.alpha", "expected one of .*, got uniform and fix"),
        ("loss.alpha: {log: true}", "loss.alpha", "expected one of .*, got none of them"),
        ("loss.alpha: {fix: 1, log: true}", "loss.alpha", "log belongs to"),
        ("loss.alpha: {fix: 1, kinds: [step]}", "loss.alpha", "kinds belongs to schedule"),
        ("loss.alpha: 5", "loss.alpha", r"expected how it is searched, such as .*, got 5"),
        ("loss.alpha: {fix: none}", "loss.alpha.fix", "valid number.*, got none"),
        ("optimizer.decay: {choice: [cosine, stpe]}", "optimizer.decay.choice.1", "'cosine', .*, got stpe"),
        ("optimizer.decay: {choice: [step, step]}", "optimizer.decay.choice", "expected each value once"),
        ("epochs: {integer: [1.5, 3]}", "epochs.integer.0", "valid integer, got 1.5"),
        ("epochs: {choice: ['5']}", "epochs.choice.0", "expected int, not str, got 5"),
        ("epochs: {choice: [true]}", "epochs.choice.0", "expected int, not bool, got True"),
        ("masking.low: {uniform: [0, 1]}", "masking.low", r"is a schedule: .* or search masking\.low\.start"),
        ("epochs: {schedule: [1, 2]}", "epochs", "no schedule of the configuration"),
        ("masking.low: {schedule: [0, 1], kinds: [stpe]}", "masking.low.kinds", r"did you mean step\?"),
        ("masking.strategy: {branch: {HAM: {x: {fix: 1}}}}", "masking.strategy.branch.HAM.x", "no setting"),
        ("masking.strategi: {branch: [HAM]}", "masking.strategi", r"did you mean masking\.strategy\?"),
        ("keep_at_least: 3", "keep_at_least", r"a share in \(0, 1\], got 3"),
        ("{}", "", "expected settings to search, got none"),
        ("5", "", "expected settings to search, got 5"),
    ],
)
def test_a_mistake_in_a_space_is_named(text, path, message):
    with pytest.raises(SettingError, match=message) as caught:
        written(text)
    assert ".".join(map(str, caught.value.path)) == path
