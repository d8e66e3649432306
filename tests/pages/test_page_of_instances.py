from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_bags import MemoryBags
from sklearn.metrics import roc_auc_score

from mhimdist.config.presets import preset
from mhimdist.errors import ReportError
from mhimdist.models import build
from mhimdist.pages import instances
from mhimdist.pages.subject import read_subject


class LabelledBags(MemoryBags):
    """Twenty bags; of three, the instances are labelled, and one of these has negative ones only."""

    def __init__(self, keys: tuple[str, ...], digest: str) -> None:
        draw = torch.Generator().manual_seed(0)
        features = [torch.randn(12, 8, generator=draw) for _ in keys]
        super().__init__(features, [i % 2 for i in range(len(keys))], list(keys))
        self.keys, self.digest = keys, digest

    def instance_labels(self, row: int) -> np.ndarray | None:
        marks = {0: [1, 5], 3: [0, 2, 11], 4: []}
        return np.isin(np.arange(12), marks[row]).astype(np.uint8) if row in marks else None


def network(seed: int) -> torch.nn.Module:
    config = preset("c16", "abmil").override({"model.hidden_dim": 16}).model
    return build(config, num_features=8, num_classes=2, seed=seed).eval()


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Student and teacher of every fold."""
    both = network(1), network(2)
    monkeypatch.setattr(instances, "load_student", lambda folder: both[0])
    monkeypatch.setattr(instances, "load_teacher", lambda folder: both[1])
    return both


def test_aucs_are_means_over_the_slides_with_both_kinds(networks, tmp_path: Path) -> None:
    bags = LabelledBags(tuple(f"s{i:03d}" for i in range(6)), "d" * 64)
    found = instances.instance_aucs(tmp_path, bags.keys, bags)
    assert found.slides == 2
    for model, name in zip(networks, ("student's attention", "teacher's attention"), strict=True):
        expected = []
        for row in (0, 3):
            with torch.inference_mode():
                scores_N = model(bags.load([row])).scores_TH.mean(1)
            expected.append(roc_auc_score(bags.instance_labels(row), scores_N))
        assert found.values[name] == pytest.approx(np.mean(expected))
    with torch.inference_mode():
        values = [
            roc_auc_score(
                bags.instance_labels(row),
                networks[0].instance_probabilities(bags.load([row]))[:, bags.labels_N[row]],
            )
            for row in (0, 3)
        ]
    assert found.values["student's instance probability"] == pytest.approx(np.mean(values))


def test_configurations_stand_side_by_side(
    networks, whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = read_subject(whole_run)
    bags = LabelledBags(tuple(f"s{i:03d}" for i in range(60)), "d" * 64)
    monkeypatch.setattr(instances, "open_bags", lambda data, loading, features: bags)
    section = instances.instances_section(subject, "shards")
    for name in ("MHIM", "AB-MIL", "teacher&#39;s attention"):
        assert name in section.body
    bags.digest = "e" * 64
    with pytest.raises(
        ReportError, match="expected the data set that MHIM was trained on, digest dddddddddddd"
    ):
        instances.instances_section(subject, "shards")
    bags.digest = "d" * 64
    monkeypatch.setattr(bags, "instance_labels", lambda row: None)
    with pytest.raises(ReportError, match="no test slide with labelled instances of both kinds"):
        instances.instances_section(subject, "shards")


def test_a_model_without_attention_has_a_gap(
    networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks[0], "attention_weights", lambda bag, output: None)
    monkeypatch.setattr(instances, "load_teacher", lambda folder: None)
    bags = LabelledBags(("a", "b"), "d" * 64)
    found = instances.instance_aucs(tmp_path, bags.keys, bags)
    assert list(found.values) == ["student's instance probability"]
    assert replace(found, slides=1) == found
