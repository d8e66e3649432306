"""Sweeps and cross-validations leave the file that repeats them, without secrets."""

import pytest

from mhimdist.config.presets import preset
from mhimdist.config.repeated import REPEAT_FILE, repeated
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.run_files.read import read_job
from mhimdist.search.options import Sweep
from mhimdist.search.proposals import examine
from mhimdist.search.space import Space
from mhimdist.sweep.repeat import source_of, write_repeat

BASE = preset("c16", "abmil").override(
    {"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4, "epochs": 25}
)


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.01, 1.0, log=True)
    if s.branch("masking.strategy", ["HAM", "R-HAM"]) == "R-HAM":
        s.schedule("masking.random", 0.1, 0.7, kinds=["constant", "step"])
    else:
        s.fix("masking.random", 0.0)


def of_python_alone(s: Space) -> None:
    if s.uniform("loss.alpha", 0.01, 1.0, log=True) > 0.5:
        s.uniform("loss.temperature", 0.05, 1.0)


def _written(sweep: Sweep, function) -> str:
    sweep.folder.mkdir(parents=True)
    write_repeat(sweep, function, examine(function, sweep.train))
    return (sweep.folder / REPEAT_FILE).read_text()


def test_a_sweep_is_repeated_by_its_file(tmp_path):
    sweep = Sweep(home=tmp_path, name="first", train=BASE, seeds=(1, 2), folds=3, gpus_per_run=0.25)
    text = _written(sweep, space)
    job = read_job("tune", sweep.folder / REPEAT_FILE)
    assert job.options == sweep
    assert examine(job.space, BASE).digest == examine(space, BASE).digest
    assert "seeds: [1, 2]  # default []\n" in text
    assert "  epochs: 25  # default 200\n" in text
    assert text.count("# digest") == 1
    again = sweep.model_copy(update={"name": "again"})
    assert _written(again, job.space).replace("again", "first") == text.replace("again", "first")


def test_a_cross_validation_is_repeated_by_its_file(tmp_path):
    job = CrossValidation(home=tmp_path, train=preset("tcga", "transmil"), model="transmil", test_share=0.2)
    (tmp_path / REPEAT_FILE).write_text(repeated(job, "cross-validate"))
    assert read_job("cross-validate", tmp_path / REPEAT_FILE).options == job


def test_a_space_that_only_python_says_is_named(tmp_path):
    sweep = Sweep(home=tmp_path, train=BASE)
    text = _written(sweep, of_python_alone)
    assert f"digest {examine(of_python_alone, BASE).digest}" in " ".join(text.replace("#", "").split())
    assert "`of_python_alone` in test_repeat.py" in " ".join(text.replace("#", "").split())
    assert "\nspace:" not in text
    assert source_of(of_python_alone) == "`of_python_alone` in test_repeat.py"


def test_secrets_and_dangers_are_left_out(tmp_path):
    sweep = Sweep(
        home=tmp_path,
        train=BASE,
        data="https://host/x?X-Amz-Signature=SECRET",
        storage="postgresql://me:hunter2@host/db",
        fresh=True,
        insecure=True,
    )
    text = _written(sweep, space)
    assert "SECRET" not in text
    assert "hunter2" not in text
    job = read_job("tune", sweep.folder / REPEAT_FILE)
    assert (job.options.fresh, job.options.insecure) == (False, False)
    left_out = {"data": "https://host/x", "storage": job.options.storage, "fresh": False, "insecure": False}
    assert job.options == sweep.model_copy(update=left_out)
    for said in ("storage is not written", "data without what may be secret", "it would delete this folder"):
        assert said in text


@pytest.mark.parametrize(
    "value", ["no", "1e5", "a: b", "x # y", "none", "*a", "[1]", "é\u202e", "a\nb", "'", ""]
)
def test_any_text_is_written_so_that_it_is_read_again(value, tmp_path):
    job = CrossValidation(home=tmp_path, data=value, train=BASE)
    (tmp_path / REPEAT_FILE).write_text(repeated(job, "cross-validate"), encoding="utf-8")
    assert read_job("cross-validate", tmp_path / REPEAT_FILE).options.data == value
