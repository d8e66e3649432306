"""A fold as a Ray task, without Ray: what a run on a share of a GPU leaves when its memory runs out."""

import pytest
import torch
from feature_folders import shards_of
from memory_bags import MemoryBags

from mhimdist.config.execution import Execution
from mhimdist.config.train import TrainConfig
from mhimdist.distributed import fold_tasks, shared_gpu
from mhimdist.sweep.memory import is_of_a_gpu, is_out_of_memory
from mhimdist.training.folds import Fold


@pytest.mark.parametrize(("share", "is_named"), [(0.25, True), (1.0, False)])
def test_a_fold_that_outgrew_its_share_of_a_gpu_says_so(
    bags: MemoryBags, tmp_path, monkeypatch, share, is_named
):
    caps = []

    def outgrow(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. 17.41 GiB allowed")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", caps.append)
    monkeypatch.setattr(shared_gpu, "_share_of_this_process", lambda: share)
    monkeypatch.setattr(fold_tasks, "open_bags", lambda *arguments, **named: bags)
    monkeypatch.setattr(fold_tasks, "run_fold", outgrow)
    fold = Fold("it", TrainConfig(device="cuda"), bags.holdout(), 1, tmp_path / "it", is_tested=True)
    outcome = fold_tasks._task(fold, tmp_path, Execution(home=tmp_path), tmp_path / "stop")
    assert isinstance(outcome, str)
    assert is_out_of_memory(outcome)
    assert is_of_a_gpu(outcome)
    assert ("the run has 0.25 of a GPU, and its tensors 17.4 GiB of 80.0 GiB" in outcome) == is_named
    assert len(caps) == is_named
    assert ("raise gpus_per_run" in (fold.folder / "error.txt").read_text()) == is_named


@pytest.mark.faults(41)
def test_a_fold_is_not_trained_on_other_data_than_the_commands(tmp_path, bags: MemoryBags):
    found = shards_of(bags, tmp_path)
    fold = Fold(
        "it",
        TrainConfig(epochs=1),
        bags.holdout(),
        1,
        tmp_path / "it",
        is_tested=True,
        data_digest="the data set that the command opened",
    )
    outcome = fold_tasks._task(fold, found, Execution(home=tmp_path), tmp_path / "stop")
    assert isinstance(outcome, str)
    assert outcome.startswith(f"ManifestError: {found} has changed since this command opened it")
    assert not (fold.folder / "history.jsonl").exists()
