"""A made-up sweep that looks like a real one, from a seed."""

import math
import random
from collections.abc import Callable

import pytest

from mhimdist.report.summary import FinalRun, History, State, SweepSummary, Trial

BASE_PARAMS: dict[str, object] = {
    "optimizer.learning_rate": 2e-4,
    "mhim.masking.high_ratio": 0.01,
    "mhim.masking.high_schedule": "cosine",
    "mhim.masking.low_ratio": 0.0,
    "mhim.masking.random_ratio": 0.5,
    "mhim.consistency.alpha": 0.1,
    "mhim.consistency.temperature": 0.1,
    "mhim.teacher.momentum": 0.9999,
    "mhim.teacher.momentum_schedule": "constant",
}


def made_history(draw: random.Random, num_epochs: int, peak: float, high: float, masked: float) -> History:
    """Rows as the trainer writes them; the teacher trails the student, and the high ratio decays."""
    rows: list[dict[str, float | None]] = []
    for epoch in range(1, num_epochs + 1):
        progress = 1 - math.exp(-epoch / 5)
        student = 0.5 + (peak - 0.5) * progress + draw.gauss(0, 0.012)
        masked_high = high * (1 + math.cos(math.pi * (epoch - 1) / 25)) / 2
        rows.append(
            {
                "epoch": epoch,
                "loss": 0.72 * math.exp(-epoch / 9) + 0.3,
                "classification_loss": 0.7 * math.exp(-epoch / 9) + 0.05,
                "consistency_loss": 5.2 * math.exp(-epoch / 12) + 1.1,
                "learning_rate": 2e-4,
                "momentum": 0.9999,
                "kept_ratio": (1 - masked) * (1 - masked_high),
                "masked_high_ratio": masked_high,
                "masked_low_ratio": 0.0,
                "masked_random_ratio": masked,
                "student_validation_score": min(0.999, student),
                "teacher_validation_score": 0.5 + (peak + 0.01 - 0.5) * (1 - math.exp(-epoch / 7)),
                "epoch_s": 0.6 + draw.random() / 10,
            }
        )
    return rows


def made_trial(draw: random.Random, number: int, state: State, num_epochs: int) -> Trial:
    """A random configuration; the base configuration if `number` is 0."""
    if number == 0:
        params = dict(BASE_PARAMS)
    else:
        params = {
            "optimizer.learning_rate": 10 ** draw.uniform(-4, -2.7),
            "mhim.masking.high_ratio": draw.uniform(0.005, 0.1),
            "mhim.masking.high_schedule": draw.choice(["constant", "cosine", "linear", "step"]),
            "mhim.masking.low_ratio": draw.choice([0.0, round(draw.uniform(0.05, 0.8), 6)]),
            "mhim.masking.random_ratio": draw.uniform(0, 0.7),
            "mhim.consistency.alpha": 10 ** draw.uniform(-2.5, 0),
            "mhim.teacher.momentum": 1 - 10 ** draw.uniform(-4, -2),
            "mhim.teacher.momentum_schedule": draw.choice(["constant", "cosine"]),
        }
        if params["mhim.masking.high_schedule"] == "step":
            params["mhim.masking.high_step_epochs"] = draw.choice([5, 10])
        if draw.random() < 0.7:
            params["mhim.consistency.temperature"] = draw.uniform(0.05, 0.5)
    rate = params["optimizer.learning_rate"]
    assert isinstance(rate, float)
    peak = 0.955 - 0.06 * (math.log10(rate) + 3.2) ** 2 + draw.gauss(0, 0.012)
    high, masked = params["mhim.masking.high_ratio"], params["mhim.masking.random_ratio"]
    assert isinstance(high, float)
    assert isinstance(masked, float)
    history = made_history(draw, num_epochs, peak, high, masked)
    aucs = [auc for row in history if (auc := row["student_validation_score"]) is not None]
    reasons = {
        "complete": "",
        "pruned": f"stopped by ASHA at epoch {num_epochs}",
        "failed": 'Traceback (most recent call last):\n  File "engine.py", line 88, in train\n'
        + "NonFiniteError: the loss became nan at epoch 3, step 41; bags: tumor_018, normal_093, tumor_044",
    }
    return Trial(
        number=number,
        state=state,
        value=max(aucs) if aucs and state != "failed" else None,
        params=params,
        history=history,
        duration_s=0.7 * num_epochs + draw.random(),
        reason=reasons[state],
    )


def made_sweep(num_trials: int = 24, seed: int = 7, **changes: object) -> SweepSummary:
    """A sweep in which about 4 in 10 trials are pruned and 1 in 20 fails; `changes` replace its fields."""
    draw = random.Random(seed)
    trials = []
    for number in range(num_trials):
        state: State = "complete"
        if number > 0 and number % 5 in (2, 4):
            state = "pruned"
        elif number % 20 == 13:
            state = "failed"
        num_epochs = {"complete": 25, "pruned": draw.choice([3, 9]), "failed": 2}[state]
        trials.append(made_trial(draw, number, state, num_epochs))
    base_config = {
        "model": {"name": "abmil", "hidden_dim": 128, "gated": False},
        "optimizer": {"learning_rate": 2e-4, "weight_decay": 1e-5},
        "mhim": {
            "masking": {"high_ratio": 0.01, "high_schedule": "cosine", "low_ratio": 0.0, "random_ratio": 0.5},
            "consistency": {"alpha": 0.1, "temperature": 0.1},
            "teacher": {"momentum": 0.9999, "momentum_schedule": "constant"},
        },
    }
    best_config = {
        "model": {"name": "abmil", "hidden_dim": 128, "gated": False},
        "optimizer": {"learning_rate": 5.1234e-4, "weight_decay": 1e-5},
        "mhim": {
            "masking": {
                "high_ratio": 0.0437,
                "high_schedule": "step",
                "high_step_epochs": 5,
                "low_ratio": 0.0,
                "random_ratio": 0.312,
            },
            "consistency": {"alpha": 0.0312, "temperature": 0.1},
            "teacher": {"momentum": 0.99923, "momentum_schedule": "constant"},
        },
    }
    fields: dict[str, object] = {
        "name": "c16-abmil-demo",
        "dataset": "digits-c16",
        "synthetic": True,
        "objective": "validation AUC",
        "protocol": "strict",
        "trials": trials,
        "best_config": best_config,
        "sweep_s": 163.4,
        "base_number": 0,
        "base_config": base_config,
        "importances": {
            "optimizer.learning_rate": 0.46,
            "mhim.consistency.alpha": 0.17,
            "mhim.masking.random_ratio": 0.14,
            "mhim.teacher.momentum": 0.11,
            "mhim.masking.high_ratio": 0.08,
            "mhim.masking.high_schedule": 0.03,
            "mhim.teacher.momentum_schedule": 0.01,
        },
        "final_runs": made_runs(draw, 0.952),
        "baselines": {"AB-MIL without masking": made_runs(draw, 0.938)},
        "split_sizes": {
            "train": {"cases": 11, "bags": 219},
            "validation": {"cases": 2, "bags": 40},
            "test": {"cases": 7, "bags": 139},
        },
        "environment": {"Python": "3.11.9", "torch": "2.9.0", "Hardware": "2 CPU cores, no GPU"},
    }
    return SweepSummary(**(fields | changes))  # type: ignore[arg-type]


def made_runs(draw: random.Random, peak: float) -> list[FinalRun]:
    """Three seeds of one configuration."""
    runs = []
    for seed in (2021, 2022, 2023):
        history = made_history(draw, 25, peak, 0.04, 0.3)
        best = max(history, key=lambda row: row["student_validation_score"] or 0)
        test = {"auc": peak - 0.012 + draw.gauss(0, 0.008), "accuracy": 0.89, "f1": 0.87, "precision": 0.9}
        runs.append(
            FinalRun(
                seed=seed,
                best_epoch=int(best["epoch"] or 0),
                validation={"auc": best["student_validation_score"], "threshold": 0.41},
                test={**test, "recall": 0.85 + draw.gauss(0, 0.01), "threshold": 0.41},
                history=history,
            )
        )
    return runs


@pytest.fixture(scope="session")
def make_sweep() -> Callable[..., SweepSummary]:
    """The function `made_sweep`, for tests that change its trials or fields."""
    return made_sweep
