"""Writes folders of finished runs without training, for tests of what reads them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.report.comparison import Comparison, Row
from mhimdist.statistics import metrics
from mhimdist.training.result import Protocol, Result

MASKED = preset("c16", "abmil").override({"epochs": 2})
PLAIN = MASKED.first_stage()


def write_fold(
    folder: Path,
    config: TrainConfig,
    *,
    fold: int,
    seed: int,
    keys: Sequence[str],
    cases: Sequence[str],
    labels: Sequence[int],
    probabilities: np.ndarray,
    train: Sequence[str],
    protocol: Protocol = "strict",
    data_digest: str = "d" * 64,
    note: str = "",
) -> Result:
    """Write config.json, split.json and result.json of a fold that was tested with these probabilities."""
    folder.mkdir(parents=True)
    test = metrics.classification(np.array(labels), probabilities, 0.5)
    split = {"train": list(train), "validation": ["v0", "v1"], "test": list(keys), "selects_on_test": False}
    result = Result(
        protocol=protocol,
        seed=seed,
        fold=fold,
        config_digest=config.digest(),
        split_digest=f"{fold}-{seed}-{len(keys)}",
        data_digest=data_digest,
        num_epochs=2,
        best_epoch=1,
        epoch_s=1.0,
        num_parameters=10,
        validation=test,
        test=test,
        keys=list(keys),
        cases=list(cases),
        labels=list(labels),
        probabilities=probabilities.tolist(),
        note=note,
    )
    (folder / "config.json").write_text(json.dumps(config.recipe()))
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "result.json").write_text(json.dumps(asdict(result)))
    return result


def write_cross_validation(
    folder: Path,
    shifts: Mapping[str, tuple[TrainConfig, float]],
    *,
    folds: int = 3,
    seeds: Sequence[int] = (1, 2),
    num_slides: int = 60,
    slides_a_case: int = 1,
    protocol: Protocol = "strict",
    with_table: bool = True,
    holder: str = "folds",
    prefix: str = "s",
    data_digest: str = "d" * 64,
    dataset: str = "digits",
) -> Path:
    """Write a cross-validation whose scores are a normal noise plus a shift for the positive slides.

    Args:
        folder: receives the folds and the table.
        shifts: configuration and shift, by name; the larger the shift, the higher the AUC.
        folds, seeds: its size; every seed deals the cases anew.
        num_slides, slides_a_case: its test slides over all folds.
        protocol, data_digest, dataset: what the results say.
        with_table: write table.json.
        holder: name of the folder with the folds.
        prefix: of the slides' names.
    """
    keys = [f"{prefix}{i:03d}" for i in range(num_slides)]
    cases = [f"case-{i // slides_a_case:03d}" for i in range(num_slides)]
    labels = [(i // slides_a_case) % 2 for i in range(num_slides)]
    shared = np.random.default_rng(0).normal(size=num_slides)
    rows = []
    for number, (name, (config, shift)) in enumerate(shifts.items()):
        results = []
        for seed in seeds:
            dealt = np.random.default_rng(seed).permutation(num_slides // slides_a_case)
            fold_of = {f"case-{case:03d}": i % folds + 1 for i, case in enumerate(dealt)}
            noise = np.random.default_rng([seed, number]).normal(size=num_slides)
            scores = 1 / (1 + np.exp(-(shared + noise + shift * (2 * np.array(labels) - 1))))
            for fold in range(1, folds + 1):
                tested = [i for i in range(num_slides) if fold_of[cases[i]] == fold]
                results.append(
                    write_fold(
                        folder / holder / f"fold-{fold}-seed-{seed}-{number}{protocol}",
                        config.model_copy(update={"seed": seed}),
                        fold=fold,
                        seed=seed,
                        keys=[keys[i] for i in tested],
                        cases=[cases[i] for i in tested],
                        labels=[labels[i] for i in tested],
                        probabilities=np.stack([1 - scores[tested], scores[tested]], axis=1),
                        train=[keys[i] for i in range(num_slides) if i not in tested],
                        protocol=protocol,
                        data_digest=data_digest,
                    )
                )
        rows.append(Row(name, protocol, results, len(results)))
    if with_table:
        table = Comparison(
            folder.name,
            dataset,
            synthetic=False,
            num_bags=num_slides,
            num_cases=len(set(cases)),
            num_folds=folds,
            split_by=f"{folds}-fold by case",
            seeds=seeds,
            rows=rows,
            wall_s=1.0,
            num_found=0,
        )
        (folder / "table.json").write_text(table.json())
    return folder


def write_prediction(
    folder: Path, labels: Sequence[str | None], positive: Sequence[float], **about: object
) -> Path:
    """Write predictions.parquet and prediction.json of two classes, "normal" and "tumour".

    Args:
        folder: is created.
        labels: the label of each slide, None if it is unknown.
        positive: the probability of "tumour" of each slide.
        about: what prediction.json says otherwise.
    """
    folder.mkdir()
    rows = range(len(labels))
    columns = {
        "slide": [f"s{i:03d}" for i in rows],
        "case": [f"case-{i:03d}" for i in rows],
        "label": labels,
        "probability_normal": [1 - p for p in positive],
        "probability_tumour": list(positive),
        "predicted": ["tumour" if p >= 0.4 else "normal" for p in positive],
        "threshold": [0.4] * len(labels),
        "threshold_from": ["validation"] * len(labels),
        "spread_normal": [0.0] * len(labels),
        "spread_tumour": [0.0] * len(labels),
    }
    parquet.write_table(pa.table(columns), folder / "predictions.parquet")
    body = {
        "classes": ["normal", "tumour"],
        "threshold": 0.4,
        "protocol": "strict",
        "data": {"path": "/data/other", "digest": "e" * 64},
        "warnings": ["w"],
    }
    (folder / "prediction.json").write_text(json.dumps(body | about))
    return folder
