"""Folders to report on, written without training: a cross-validation with histories, and predictions."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from written_runs import MASKED, PLAIN, write_cross_validation

from mhimdist.training.history import EpochRecord

HOSTILE = "</script><script>alert('x')</script>|=cmd()\n%{x}<b>&amp;"
NUM_EPOCHS = 6


def write_history(folder: Path, *, masked: bool, seed: int) -> None:
    """A history in which the student learns and the teacher trails it smoothly."""
    draw = np.random.default_rng(seed)
    records = [
        EpochRecord(
            epoch=epoch,
            loss=1 / (1 + epoch),
            classification_loss=0.8 / (1 + epoch),
            consistency_loss=0.2 if masked else 0.0,
            learning_rate=1e-3,
            momentum=0.999 if masked else None,
            kept_ratio=0.5 if masked else 1.0,
            masked_high_ratio=0.01 * (NUM_EPOCHS - epoch) if masked else 0.0,
            masked_low_ratio=0.0,
            masked_random_ratio=0.5 if masked else 0.0,
            student_validation_score=0.7 + 0.04 * epoch + 0.02 * draw.random(),
            student_validation_loss=0.5,
            teacher_validation_score=0.7 + 0.04 * epoch if masked else None,
            selects_on_test=False,
            best_epoch=epoch,
            best_validation_score=0.9,
            train_s=1.0,
            epoch_s=2.0,
            mask_overlap=0.3 + 0.05 * epoch if masked and epoch else None,
            high_mask_overlap=0.2 + 0.1 * epoch if masked and epoch else None,
            rank_agreement=0.9 + 0.01 * epoch if masked else None,
            positives_hidden=0.6 if masked else None,
            positives_hidden_high=0.2 if masked else None,
            positives_hidden_low=0.0 if masked else None,
            positives_hidden_random=0.5 if masked else None,
        )
        for epoch in range(NUM_EPOCHS)
    ]
    lines = (json.dumps(asdict(record)) + "\n" for record in records)
    (folder / "history.jsonl").write_text("".join(lines))


def write_whole_run(folder: Path, *, holder: str = "folds", **options: object) -> Path:
    """A cross-validation of two configurations, as its command leaves it; or a sweep's final runs."""
    options |= {"holder": holder, "with_table": holder == "folds"}
    run = write_cross_validation(folder, {"MHIM": (MASKED, 0.8), "AB-MIL": (PLAIN, 0.5)}, **options)  # type: ignore[arg-type]
    for number, fold in enumerate(sorted((run / holder).iterdir())):
        result = json.loads((fold / "result.json").read_text())
        draw = np.random.default_rng(number)
        labels = [i % 2 for i in range(20)]
        scores = 1 / (1 + np.exp(-(2 * np.array(labels) - 1 + draw.normal(size=20))))
        result |= {
            "validation_keys": [f"v{i}" for i in range(20)],
            "validation_cases": [f"v{i}" for i in range(20)],
            "validation_labels": labels,
            "validation_probabilities": np.stack([1 - scores, scores], axis=1).tolist(),
            "best_epoch": 4,
        }
        (fold / "result.json").write_text(json.dumps(result))
        masked = json.loads((fold / "config.json").read_text())["teacher"]["kind"] != "none"
        write_history(fold, masked=masked, seed=number)
    name = "options" if holder == "folds" else "sweep"
    (run / f"{name}.json").write_text(json.dumps({"data": "shards/digits", "validation_share": 0.15}))
    return run


def write_predictions(
    folder: Path, *, classes: tuple[str, ...] = ("normal", "tumor"), labelled: bool = True, name: str = "s"
) -> Path:
    """Predictions of 40 slides by an ensemble of 3."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(5)
    labels = [i % len(classes) for i in range(40)]
    logits = draw.normal(size=(40, len(classes))) + 1.5 * np.eye(len(classes))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    columns: dict[str, Any] = {
        "slide": [f"{name}{i}" for i in range(40)],
        "case": [f"{name}{i // 2}" for i in range(40)],
        "label": pa.array([classes[i] if labelled else None for i in labels], pa.string()),
        "predicted": [classes[i] for i in probabilities.argmax(axis=1)],
        "threshold": pa.array([0.5 if len(classes) == 2 else None] * 40, pa.float64()),
        "threshold_from": ["mean over 3 models"] * 40,
    }
    for c, label in enumerate(classes):
        columns[f"probability_{label}"] = probabilities[:, c]
        columns[f"spread_{label}"] = np.full(40, 0.0625)
    parquet.write_table(pa.table(columns), folder / "predictions.parquet")
    cases = {name: values for name, values in columns.items() if name not in ("slide", "case", "label")}
    cases = {name: values[::2] for name, values in cases.items()}
    cases |= {"case": [f"{name}{i}" for i in range(20)], "slides": [2] * 20}
    cases["label"] = pa.array([None] * 20, pa.string())
    parquet.write_table(pa.table(cases), folder / "cases.parquet")
    about = {
        "models": [
            {"folder": f"runs/cv/folds/fold-{i}", "fold": i, "seed": 1, "digest": "ab" * 20}
            for i in (1, 2, 3)
        ],
        "data": {"path": "/data/" + name, "digest": "d" * 64, "slides": 40, "cases": 20},
        "classes": list(classes),
        "threshold": 0.5,
        "threshold_from": "mean over 3 models",
        "protocol": "strict",
        "warnings": [f"the slides of {name} say nothing"],
        "versions": {"torch": "2.9"},
    }
    (folder / "prediction.json").write_text(json.dumps(about))
    return folder


def write_paper_tables(folder: Path, name: str) -> Path:
    """The paper's tables with one configuration of this name beside the plain one."""
    run = write_cross_validation(folder, {"abmil": (PLAIN, 1.0), name: (MASKED, 1.2)})
    comparison = json.loads((run / "table.json").read_text())
    (run / "table.json").unlink()
    grid = {"title": "Table 3 <b>", "header": ["Module", "AUC"], "rows": [["base", "90.00 +- 0.10"]]}
    tables = [grid | {"caption": "In per cent."}]
    body = {"comparison": comparison, "tables": tables, "caption": "All of them."}
    (run / "tables.json").write_text(json.dumps(body))
    return run


def write_survival(folder: Path) -> None:
    """Write clinical.tsv, a table of the patients' survival, and slides.csv, the slides of each."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    slides = "".join(f"{row['slide']},{row['case']}\n" for row in rows)
    (folder / "slides.csv").write_text("slide,case\n" + slides)
    cases = dict.fromkeys(row["case"] for row in rows)
    lines = [f"{case}\t{2 * i + 3}\t{i % 2}:{('LIVING', 'DECEASED')[i % 2]}" for i, case in enumerate(cases)]
    table = "PATIENT_ID\tOS_MONTHS\tOS_STATUS\n" + "".join(f"{line}\n" for line in lines)
    (folder / "clinical.tsv").write_text(table)
