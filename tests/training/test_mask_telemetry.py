"""What masks do is measured on the masks that training draws, and changes nothing."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from memory_bags import gaussian_bags
from scipy.stats import spearmanr

from mhimdist.config.execution import Saving
from mhimdist.config.train import load_config
from mhimdist.training import mask_telemetry
from mhimdist.training.mask_telemetry import NAMES, MaskFigures, MaskTelemetry, rank_agreement, sample
from mhimdist.training.trainer import Trainer
from mhimdist.training.workers import Workers

SETTINGS = {
    "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
    "masking": {"high": 0.1, "random": 0.3, "low": 0.1},
    "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
    "epochs": 4,
    "device": "cpu",
}


class Labelled:
    """The Gaussian bags, with the instance labels that they are made by."""

    def __init__(self):
        self.bags = gaussian_bags()

    def __getattr__(self, name):
        return getattr(self.bags, name)

    def instance_labels(self, row):
        labels_N = np.zeros(self.bags.sizes_N[row], np.uint8)
        if self.bags.labels_N[row]:
            labels_N[: len(labels_N) // 5] = 1
        return labels_N


def _trainer(bags, folder=None, **changes):
    config = load_config(SETTINGS).override(changes)
    return Trainer(config, bags, bags.holdout(), folder, saving=Saving(keep_last=9))


def _figures(trainer):
    return [{name: getattr(record, name) for name in NAMES} for record in trainer.epochs()]


def test_ranks_agree_as_scipy_says():
    first_NH, second_NH = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    expected = np.mean([spearmanr(a, b).statistic for a, b in zip(first_NH.T, second_NH.T, strict=True)])
    assert rank_agreement(first_NH, second_NH) == pytest.approx(expected, abs=1e-12)
    assert rank_agreement(first_NH, first_NH) == pytest.approx(1)
    assert rank_agreement(first_NH[:1], second_NH[:1]) is None
    assert rank_agreement(first_NH, None) is None


def test_the_sample_is_small_mixed_and_the_same_whatever_the_order_of_the_bags():
    bags = gaussian_bags(num_bags=400)
    rows_N = np.arange(300)
    chosen = sample(bags, rows_N, seed=1)
    assert 2 <= len(chosen) <= 32
    assert bags.sizes_N[list(chosen)].sum() <= 0.02 * bags.sizes_N[rows_N].sum()
    assert set(bags.labels_N[list(chosen)].tolist()) == {0, 1}
    assert chosen == sample(bags, rows_N[::-1], seed=1)
    assert chosen != sample(bags, rows_N, seed=2)
    assert len(sample(bags, np.arange(4), seed=1)) == 1


def test_a_frozen_teacher_repeats_its_masks_and_the_draws_alone_change_them():
    """Low and high masks of the whole pool follow from the scores, so they are the same in every epoch."""
    bags = gaussian_bags()
    trainer = _trainer(bags, **{"masking.random": 0.0, "teacher.momentum.start": 1.0})
    rows = _figures(trainer)
    assert rows[0]["mask_overlap"] is None
    assert [row["mask_overlap"] for row in rows[1:]] == [1, 1, 1]
    assert [row["high_mask_overlap"] for row in rows[1:]] == [1, 1, 1]
    trainer = _trainer(bags, **{"masking.high": 0.0, "masking.low": 0.0, "masking.random": 0.5})
    overlaps = [row["mask_overlap"] for row in _figures(trainer)[1:]]
    assert np.mean(overlaps) == pytest.approx(1 / 3, abs=0.2)  # of two halves drawn apart
    assert trainer.history[1].high_mask_overlap is None


def test_positives_are_counted_by_mask(monkeypatch):
    monkeypatch.setattr(mask_telemetry, "SHARE", 1.0)
    trainer = _trainer(Labelled(), **{"masking.high": 0.3, "masking.low": 0.0, "masking.random": 0.5})
    last = _figures(trainer)[-1]
    assert last["positives_hidden_random"] == pytest.approx(0.5, abs=0.1)
    assert last["positives_hidden_low"] == 0
    high, together = last["positives_hidden_high"], last["positives_hidden"]
    assert together == pytest.approx(high + 0.5 * (1 - high), abs=0.1)


def test_without_masks_and_without_a_teacher_nothing_is_read(monkeypatch):
    monkeypatch.setattr(MaskTelemetry, "_look", lambda *_: pytest.fail("it looked"))
    changes = {f"masking.{name}": 0.0 for name in ("high", "low", "random")}
    trainer = _trainer(gaussian_bags(), **changes, **{"teacher": {"kind": "none"}, "loss.alpha": 0.0})
    assert _figures(trainer) == [asdict(MaskFigures())] * 4


def test_a_resumed_run_measures_what_an_undisturbed_one_does(tmp_path):
    bags = Labelled()
    whole = _figures(_trainer(bags))
    for record in _trainer(bags, tmp_path).epochs():
        if record.epoch == 1:
            break
    resumed = _trainer(bags, tmp_path)
    assert len(resumed.history) == 2
    assert whole[2:] == _figures(resumed)
    assert all(row["mask_overlap"] is not None for row in whole[1:])


def test_several_workers_measure_what_one_does(monkeypatch):
    monkeypatch.setattr(mask_telemetry, "SHARE", 0.3)
    trainer = _trainer(Labelled())
    telemetry = trainer._telemetry
    assert len(telemetry.rows) > 3
    _, before = telemetry.measure(0, {}, Workers())
    alone, masks = telemetry.measure(1, before, Workers())
    size = 3
    parts = [telemetry._look(1, telemetry.rows[rank::size]) for rank in range(size)]
    for rank in range(size):
        workers = Workers()
        workers.rank, workers.world_size, workers.gather = rank, size, lambda _: parts
        figures, shared = telemetry.measure(1, before, workers)
        assert figures == alone
        assert shared.keys() == masks.keys()
        assert all(torch.equal(shared[name], bits) for name, bits in masks.items())
