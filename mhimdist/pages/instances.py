"""The section on instances: how well attention finds the positive instances of a slide, if they are labelled.

This is the one section that reads the data set and loads networks; the others read what the runs left.

Dimensions: N instances of a bag, C classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from mhimdist.data.cases import CaseBags, case_digest
from mhimdist.data.opening import open_bags
from mhimdist.data.stored import StoredBags
from mhimdist.errors import ReportError
from mhimdist.models import BagModel
from mhimdist.pages.subject import Configuration, Subject
from mhimdist.report import blocks, formats
from mhimdist.report.blocks import Cell, Section
from mhimdist.statistics.metrics import auc
from mhimdist.training.student import load_student, load_teacher

_COLUMNS = ("student's attention", "teacher's attention", "student's instance probability")


@dataclass(frozen=True)
class InstanceAucs:
    """How well a network tells the labelled instances of its test slides apart.

    Attributes:
        slides: test slides that have instances of both kinds.
        values: the mean AUC over these slides by what scores the instances; without what it has not.
    """

    slides: int
    values: Mapping[str, float]


def instance_aucs(folder: Path, keys: Sequence[str], bags: StoredBags) -> InstanceAucs:
    """AUC of the positive instances within each test slide of a fold, the mean over the slides.

    Args:
        folder: the fold's folder, with its `best_student`.
        keys: its test slides.
        bags: the data set; slides without instance labels, or with instances of one kind only, are left out.

    Raises:
        CheckpointError: the folder holds no network that can be loaded.
    """
    student, teacher = load_student(folder), load_teacher(folder)
    found: dict[str, list[float]] = {}
    slides = 0
    for row, positive_N in _labelled(keys, bags):
        slides += 1
        for name, score in _scorers(student, teacher).items():
            scores_N = score(bags, row)
            if scores_N is not None:
                probabilities_N2 = np.stack([-scores_N, scores_N], axis=1)
                value = auc(positive_N.astype(np.int64), probabilities_N2)
                found.setdefault(name, []).append(0.5 if value is None else value)
    return InstanceAucs(slides, {name: fmean(values) for name, values in found.items()})


def _labelled(keys: Sequence[str], bags: StoredBags) -> Iterator[tuple[int, np.ndarray]]:
    """Row and positive instances of each slide that has instances of both kinds."""
    for row in bags.rows_of(keys).tolist():
        labels_N = bags.instance_labels(row)
        if labels_N is not None and 0 < np.count_nonzero(labels_N) < len(labels_N):
            yield row, labels_N > 0


def _scorers(
    student: BagModel, teacher: BagModel | None
) -> dict[str, Callable[[StoredBags, int], np.ndarray | None]]:
    scorers: dict[str, Callable[[StoredBags, int], np.ndarray | None]] = {
        _COLUMNS[0]: lambda bags, row: _attention(student, bags, row),
        _COLUMNS[2]: lambda bags, row: _probability(student, bags, row),
    }
    if teacher is not None:
        scorers[_COLUMNS[1]] = lambda bags, row: _attention(teacher, bags, row)
    return scorers


@torch.inference_mode()
def _attention(network: BagModel, bags: StoredBags, row: int) -> np.ndarray | None:
    bag = bags.load([row])
    weights_NH = network.attention_weights(bag, network(bag))
    return None if weights_NH is None else weights_NH.double().mean(1).numpy()


@torch.inference_mode()
def _probability(network: BagModel, bags: StoredBags, row: int) -> np.ndarray | None:
    """The probability of the slide's own class by each instance; None where labels are no classes."""
    if not network.task.has_classes:
        return None
    probabilities_NC = network.instance_probabilities(bags.load([row]))
    return None if probabilities_NC is None else probabilities_NC[:, int(bags.labels_N[row])].double().numpy()


def instances_section(subject: Subject, data: str | Path) -> Section:
    """A table of all configurations: AUC of the positive instances by attention and by instance probability.

    Args:
        subject: runs, a cross-validation, the paper's tables or a sweep's final runs.
        data: the folder of shards that they were trained on.

    Raises:
        ReportError: the runs are of other data, or no test slide has labelled instances of both kinds.
        DataError, ManifestError, CheckpointError: data or networks cannot be read.
    """
    rows: list[list[str | Cell]] = []
    for each in subject.tested:
        if each.folds:
            features = each.entry.features if each.entry is not None else None
            found = _of_folds(each, open_bags(data, None, features), data)
            rows.append(
                [
                    each.name + (f", {each.protocol}" if len(subject.protocols) > 1 else ""),
                    f"{round(fmean(aucs.slides for aucs in found)):,}",
                    *(_mean_cell([aucs.values.get(name) for aucs in found]) for name in _COLUMNS),
                ]
            )
    caption = (
        "Within each test slide, how often a positive instance scores above a negative one; the mean over "
        "slides that have both, then mean ± standard deviation over the networks. Attention is averaged over "
        "its heads; the instance probability is that of the slide's own class."
    )
    header = ["configuration", "slides a network", *_COLUMNS]
    return blocks.section(
        "instances",
        "Does it look at the right instances?",
        blocks.table("instances-table", header, rows, caption=caption),
    )


def _of_folds(configuration: Configuration, bags: StoredBags, data: str | Path) -> list[InstanceAucs]:
    entry = configuration.entry
    if entry is not None and entry.data_digest == case_digest(bags.digest):
        bags = CaseBags(bags)  # it was trained on bags of cases
    if entry is not None and entry.data_digest != bags.digest:
        raise ReportError(
            f"data: expected the data set that {configuration.name} was trained on, digest "
            f"{entry.data_digest[:12]}, got {data} with digest {bags.digest[:12]}"
        )
    found = [
        instance_aucs(fold.folder, network.keys, bags)
        for fold, network in zip(configuration.folds, configuration.networks, strict=True)
    ]
    if not any(aucs.slides for aucs in found):
        raise ReportError(f"data: {data} has no test slide with labelled instances of both kinds")
    return [aucs for aucs in found if aucs.slides]


def _mean_cell(values: Sequence[float | None]) -> Cell:
    known = [value for value in values if value is not None]
    if not known:
        return Cell(formats.NONE)
    spread = f" ± {np.std(known):.3f}" if len(known) > 1 else ""
    return Cell(f"{fmean(known):.3f}{spread}")
