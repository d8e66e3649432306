"""Small data sets in memory for every task: the more shifted instances a bag has, the higher its target."""

from collections.abc import Sequence

import numpy as np
import torch
from memory_bags import MemoryBags

from mhimdist.config.train import TrainConfig, load_config
from mhimdist.data.bags import PackedBags
from mhimdist.data.targets import TaskInfo

INFOS = {
    "classification": TaskInfo(),
    "ordinal": TaskInfo(name="ordinal"),
    "multilabel": TaskInfo(name="multilabel", columns=("mutated", "invasive")),
    "regression": TaskInfo(name="regression", columns=("score", "size"), unit="cells"),
    "survival": TaskInfo(name="survival", columns=("time", "event"), unit="months"),
}
TASKS = {
    "corn": ("ordinal", {}),
    "cumulative": ("ordinal", {"name": "ordinal", "ordinal_loss": "cumulative"}),
    "multilabel": ("multilabel", {}),
    "regression": ("regression", {}),
    "nll": ("survival", {}),
    "cox": ("survival", {"name": "survival", "survival_loss": "cox"}),
    "cox of a step": ("survival", {"name": "survival", "survival_loss": "cox", "risk_set": "step"}),
}
"""What a data set states, and what the settings add."""
EVERY = {"classification": ("classification", {}), **TASKS}
"""The tasks of `TASKS`, and the one that most tests elsewhere are about."""
MODELS = {
    "abmil": {"hidden_dim": 16, "attention_dim": 8},
    "dsmil": {"hidden_dim": 16, "query_dim": 8},
    "transmil": {"hidden_dim": 16, "num_heads": 2, "num_landmarks": 4},
    "dtfd": {"hidden_dim": 16, "attention_dim": 8, "num_pseudo_bags": 3},
    "mean_pooling": {"hidden_dim": 16},
    "max_pooling": {"hidden_dim": 16},
    "clam_sb": {"hidden_dim": 16, "attention_dim": 8, "num_clustered": 2},
    "clam_mb": {"hidden_dim": 16, "attention_dim": 8, "num_clustered": 2},
}
MASKED = ("abmil", "dsmil", "transmil")


class TaskBags(MemoryBags):
    """A data set in memory whose bags have targets."""

    def __init__(
        self,
        features: list[torch.Tensor],
        labels: list[int],
        cases: list[str],
        task: TaskInfo,
        targets_NK: np.ndarray,
    ) -> None:
        super().__init__(features, labels, cases)
        self.task, self.targets_NK = task, targets_NK

    def load(
        self, rows: Sequence[int], dtype: torch.dtype = torch.float32, *, out: torch.Tensor | None = None
    ) -> PackedBags:
        if not len(rows):
            return super().load(rows, dtype)
        return PackedBags.from_list(
            [self.features[row].to(dtype) for row in rows],
            self.labels_N[list(rows)].tolist(),
            [self.keys[row] for row in rows],
            None if self.task.of_classes else self.targets_NK[list(rows)],
        )


def task_bags(task: str, num_bags: int = 30, num_features: int = 8, seed: int = 0) -> TaskBags:
    """Bags of 6 to 14 instances, of which up to half are shifted; each case has one bag."""
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    features, shares = [], np.linspace(0, 0.5, num_bags)[random.permutation(num_bags)]
    for share in shares:
        size = int(torch.randint(6, 15, (1,), generator=generator))
        bag = torch.randn(size, num_features, generator=generator)
        bag[: round(size * float(share))] += 2
        features.append(bag)
    strata = np.minimum(shares * 6, 2).astype(np.int64)
    targets = {
        "multilabel": np.where(
            random.random((num_bags, 2)) < 0.2,
            np.nan,
            np.stack([shares > 0.25, random.random(num_bags) < shares * 2], axis=1).astype(float),
        ),
        "regression": np.stack([shares * 10 + 100, shares**2], axis=1),
        "survival": np.stack(
            [np.exp(-3 * shares) * (1 + 0.3 * random.random(num_bags)), random.random(num_bags) < 0.7], axis=1
        ),
    }.get(task, np.zeros((num_bags, 0)))
    if task == "multilabel":  # a bag without any label is none
        targets[np.isnan(targets).all(1), 0] = 0
    cases = [f"case-{i}" for i in range(num_bags)]
    return TaskBags(features, strata.tolist(), cases, INFOS[task], targets.astype(np.float64))


def paired(task: str, num_bags: int = 40) -> TaskBags:
    """Bags of which two belong to a case, with one label."""
    bags = task_bags(task, num_bags=num_bags)
    first_N = np.arange(num_bags) // 2 * 2
    cases = [f"case-{row // 2}" for row in range(num_bags)]
    return TaskBags(
        bags.features, bags.labels_N[first_N].tolist(), cases, bags.task, bags.targets_NK[first_N]
    )


def config(model: str = "abmil", task: str = "corn", **changes: object) -> TrainConfig:
    """MHIM on a small model for a task of `EVERY`; without masking where the model has no scores."""
    settings = {
        "model": {"name": model, **MODELS[model]},
        "masking": {"high": 0.1, "random": 0.2},
        "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 2,
        "bags_per_step": 4,
        "device": "cpu",
    }
    if model not in MASKED:
        settings |= {"masking": {"random": 0.2}, "teacher": {"kind": "none"}, "loss": {"alpha": 0}}
    if EVERY[task][1]:
        settings["task"] = EVERY[task][1]
    return load_config(settings).override(changes)
