"""The parts of the check on a GPU: each notices what it is there for. None of it needs a GPU."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_check import small_kernels
from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.parts import masks, races, steps
from benchmarks.gpu_check.parts import tests as tests_part
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.workload import MemoryBags, bags_of, config_of, step_of, write_shards
from mhimdist import ops
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError

SETTING = Setting("cpu", 60.0)
SHARES = (0.1, 0.5, 0.1, 0.5)


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "notes.json")


def test_equal_masks_have_no_difference():
    assert masks._differences(SETTING, [40, 1, 300], 8, True, SHARES) == []


def test_a_row_that_differs_is_found(monkeypatch):
    select = ops.select_and_gather

    def wrong(*arguments, **options):
        found = select(*arguments, **options)
        return replace(found, kept_K=found.kept_K.roll(1))

    monkeypatch.setattr(ops, "select_and_gather", wrong)
    assert masks._differences(SETTING, [40, 1, 300], 1, False, SHARES) == ["rows"]


def test_a_key_that_differs_is_found(monkeypatch):
    numbers = ops.bag_numbers

    def wrong(*arguments):
        found = numbers(*arguments)
        return replace(found, student_dropout_B=found.student_dropout_B + 1)

    monkeypatch.setattr(ops, "bag_numbers", wrong)
    assert masks._differences(SETTING, [40], 1, False, SHARES) == ["key of student_dropout"]


def test_dropout_that_differs_fails(monkeypatch, notes):
    monkeypatch.setattr(ops, "relu_dropout", lambda values_TE, *_: values_TE.relu())
    masks._dropout(notes, SETTING)
    assert set(notes.failed) == {"dropout in float32", "dropout in bfloat16"}


def test_a_wait_that_is_not_stated_fails(monkeypatch, notes):
    setting = replace(SETTING, argument="abmil")
    batches = bags_of(setting, [30, 20], torch.float32)
    for found, failed in (({}, set()), ({"step.py:9": 1.0}, {"waits, float32, 1 bag, plain"})):
        monkeypatch.setattr(steps, "waits", lambda *_, found=found: found)
        steps._measure(notes, setting, "float32", batches, graphs=False)
        assert set(notes.failed) == failed
    first, second = json.loads(notes._file.read_text())["found"]["runs"]
    assert (first["waits"], second["waits"]) == ({}, {"step.py:9": 1.0})
    assert first["bags_per_s"] == pytest.approx(1e6 / first["us"], rel=0.1)


def test_a_step_that_differs_from_the_cpus_fails(monkeypatch, notes):
    setting, real, calls = replace(SETTING, argument="abmil"), steps.bags_of, []
    steps._against_cpu(notes, setting)
    assert notes.found["against the CPU"]["largest difference of a loss"] == 0
    assert not notes.failed

    def wrong(*arguments, **options):
        calls.append(real(*arguments, **options))
        if len(calls) == 2:
            calls[1][3].features_TD.mul_(3)
        return calls[-1]

    monkeypatch.setattr(steps, "bags_of", wrong)
    steps._against_cpu(notes, setting)
    assert set(notes.failed) == {"against the CPU"}


def test_a_batch_that_is_overwritten_too_early_fails(monkeypatch, notes):
    real = races.read_ahead

    def wrong(*arguments, **options):
        with real(*arguments, **options) as batches:
            made = [replace(batch, features_TD=batch.features_TD.clone()) for batch in batches]
        made[2].features_TD[0] += 1

        class Made:
            __enter__ = lambda self: iter(made)  # noqa: E731
            __exit__ = lambda *_: None  # noqa: E731

        return Made()

    races._compare(notes, SETTING, "right", "abmil", False)
    assert not notes.failed
    monkeypatch.setattr(races, "read_ahead", wrong)
    races._compare(notes, SETTING, "wrong", "abmil", False)
    assert set(notes.failed) == {"wrong"}


def test_a_step_that_waits_is_not_recorded():
    config = config_of(SETTING, "transmil", "float32")
    with pytest.raises(ConfigError, match="2 bag\\(s\\) of transmil waits for the device"):
        step_of(SETTING, config, graphs=True, num_bags=2)


def test_the_shards_hold_the_bags(tmp_path):
    write_shards(tmp_path, SETTING, 3)
    shards, bags = BagShards(tmp_path), MemoryBags(SETTING, 3, torch.float16)
    assert shards.dtype == torch.float16
    assert np.array_equal(shards.labels_N, bags.labels_N)
    for rows in ([0], [2, 1]):
        found, expected = (each.load(rows, torch.float16) for each in (shards, bags))
        assert torch.equal(found.features_TD, expected.features_TD)
        assert torch.equal(found.ids_B, expected.ids_B)


def test_the_kernels_for_the_sanitizer_run():
    small_kernels.launch("cpu")


REPORT = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="assert 1 == 2">trace</failure></testcase>
<testcase classname="a" name="card"><skipped message="needs a CUDA device"/></testcase>
<testcase classname="" name="tests.b"><error message="collection failure">
E   ModuleNotFoundError: No module named 'ray.train'</error></testcase>
<testcase classname="" name="tests.c"><error message="collection failure">
E   ModuleNotFoundError: No module named 'mhimdist.gone'</error></testcase>
</testsuite></testsuites>"""


def test_a_report_of_pytest_is_read(notes, tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    tests_part.read_report(notes, tmp_path / "report.xml")
    assert notes.found["tests"] == {"passed": 1, "failure": 1, "skipped": 1, "left out": 1, "error": 1}
    assert notes.left_out == {"::tests.b": "no module named ray"}
    assert set(notes.failed) == {"a::bad", "::tests.c"}


def test_a_report_without_a_pass_fails(notes, tmp_path):
    (tmp_path / "report.xml").write_text("<testsuites><testsuite/></testsuites>")
    tests_part.read_report(notes, tmp_path / "report.xml")
    assert "tests" in notes.failed


def test_the_files_of_the_mark_are_found():
    root = Path(__file__).parents[1]
    names = {path.relative_to(root).as_posix() for path in tests_part.marked_files()}
    assert {"data/test_data_on_gpu.py", "training/test_step.py", "ops/test_kernels.py"} <= names
    assert "test_sizes.py" not in names


def test_an_error_of_cuda_ends_the_part(notes):
    with notes.trying("first"):
        raise ValueError("only this")
    with pytest.raises(RuntimeError, match="CUDA error"), notes.trying("second"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert set(notes.failed) == {"first", "second"}
