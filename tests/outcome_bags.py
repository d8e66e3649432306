"""Made-up test bags of networks, by task: cases of two slides, several folds and seeds."""

import numpy as np

from mhimdist.pages.tasks.bags import Followed, Graded, Labelled, Valued
from mhimdist.statistics.survival import censoring

GRADES = ("grade 1", "grade 2", "grade 3", "grade 4")
LABELS = ("KRAS", "MSI", "TP53")


def _names(fold: int, num: int) -> dict[str, list[str]]:
    return {
        "keys": [f"slide-{fold}-{i}" for i in range(num)],
        "cases": [f"case-{fold}-{i // 2}" for i in range(num)],
    }


def graded(fold: int = 0, seed: int = 1, num: int = 60, noise: float = 0.8) -> Graded:
    """Grades, mostly right or off by one."""
    draw = np.random.default_rng([fold, seed])
    labels_N = np.random.default_rng(fold).integers(0, 4, num)
    scores_N = labels_N + draw.normal(0, noise, num)
    raw_NC = -((scores_N[:, None] - np.arange(4)) ** 2) / 2
    probabilities_NC = np.exp(raw_NC) / np.exp(raw_NC).sum(1, keepdims=True)
    return Graded(
        **_names(fold, num),
        labels_N=labels_N,
        predicted_N=scores_N.round().clip(0, 3).astype(np.int64),
        num_classes=4,
        probabilities_NC=probabilities_NC,
        seed=seed,
    )


def valued(fold: int = 0, seed: int = 1, num: int = 60, columns: tuple[str, ...] = ("HRD score",)) -> Valued:
    """Values whose predictions spread too far."""
    draw, own = np.random.default_rng([fold, seed]), np.random.default_rng(fold)
    targets_NK = own.normal(30, 8, (num, len(columns)))
    predicted_NK = 30 + 1.3 * (targets_NK - 30) + draw.normal(0, 6, targets_NK.shape)
    return Valued(
        **_names(fold, num), targets_NK=targets_NK, predicted_NK=predicted_NK, columns=columns, seed=seed
    )


def labelled(fold: int = 0, seed: int = 1, num: int = 60) -> Labelled:
    """Three labels, a fifth of whose cells are missing."""
    draw, own = np.random.default_rng([fold, seed]), np.random.default_rng(fold)
    targets_NK = (own.random((num, 3)) < [0.4, 0.2, 0.6]).astype(np.float64)
    raw_NK = 2 * targets_NK - 1 + draw.normal(0, 1.5, (num, 3))
    targets_NK[own.random((num, 3)) < 0.2] = np.nan
    return Labelled(
        **_names(fold, num),
        targets_NK=targets_NK,
        probabilities_NK=1 / (1 + np.exp(-raw_NK)),
        columns=LABELS,
        thresholds_K=np.full(3, 0.5),
        seed=seed,
    )


def followed(
    fold: int = 0, seed: int = 1, num: int = 80, num_groups: int = 2, with_training: bool = True
) -> Followed:
    """Follow-up in months, with two slides a case, known survival and some noise in the risk."""
    own = np.random.default_rng(fold)
    draw = np.random.default_rng([fold, seed])

    def cases(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        risks = own.normal(0, 1, number)
        until, last_seen = own.exponential(40 * np.exp(-risks)), own.uniform(5, 90, number)
        return np.maximum(np.minimum(until, last_seen), 0.1).round(1), until <= last_seen, risks

    times, events, risks = (np.repeat(each, 2) for each in cases(num // 2))
    train_times, train_events, _ = cases(150)
    risks = risks + draw.normal(0, 0.5, num)
    grid_T = np.linspace(6, 48, 15)
    return Followed(
        **_names(fold, num),
        times_N=times,
        events_N=events,
        risks_N=risks,
        cuts=np.quantile(own.normal(0, 1.1, 40), np.arange(1, num_groups) / num_groups),
        grid_T=grid_T,
        survival_NT=np.exp(-grid_T * np.exp(risks)[:, None] / 40),
        free=censoring(train_times, train_events) if with_training else None,
        seed=seed,
    )
