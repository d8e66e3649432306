"""From the networks' predictions to those of slides and cases.

Dimensions: N slides or cases, S slides of a case, M networks, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mhimdist.data.targets import united
from mhimdist.prediction.members import Member
from mhimdist.prediction.sources import UNKNOWN
from mhimdist.tasks import Task, restored
from mhimdist.tasks.interface import Fitted

How = Literal["mean", "max", "attention", "union"]
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Threshold:
    """The decision threshold.

    Attributes:
        value: with two classes, the lowest probability of the second one that is called positive; None with
            more classes, of which the most probable is predicted.
        source: where it comes from, in words.
    """

    value: float | None
    source: str


def threshold_of(members: Sequence[Member], given: float | None) -> Threshold:
    """The threshold that an ensemble predicts with.

    Args:
        members: the networks.
        given: what the user asks for; None for what the networks' runs chose.
    """
    task = members[0].task
    if not task.has_classes or task.record() or len(members[0].classes) != 2:
        return Threshold(None, "the most probable class" if not task.record() else task.fits_by)
    if given is not None:
        return Threshold(given, "given by --threshold")
    known = [member.threshold for member in members if member.threshold is not None]
    if len(known) < len(members):
        return Threshold(DEFAULT_THRESHOLD, "the default: not every run recorded one")
    sources = " and ".join(sorted({member.threshold_from for member in members}))
    if len(members) == 1:
        return Threshold(known[0], sources)
    # One that no probability reaches is recorded as more than 1; it must not outweigh the others.
    mean = float(np.mean([min(value, 1.0) for value in known]))
    return Threshold(mean, f"mean over {len(known)} models of {sources}")


@dataclass(frozen=True)
class Verdicts:
    """Predictions of slides or of cases.

    Attributes:
        names, cases: slide and case of every row; for cases both are the case.
        labels: class of every row; None if it is unknown.
        labels_N: their class indices, int64; `UNKNOWN` for none.
        probabilities_NC: float64 mean over the networks; of other tasks than those of classes whatever they
            predict, by the columns of the task.
        spread_NC: float64 standard deviation over the networks; 0 for one.
        predicted_N: int64 index of the predicted class; of other tasks 0.
        slides_N: int64 number of slides of every row.
        targets_NK: float64 targets, NaN where unknown; N x 0 for classes.
        decided: what is predicted, in words; None if the numbers say it.
    """

    names: tuple[str, ...]
    cases: tuple[str, ...]
    labels: tuple[str | None, ...]
    labels_N: np.ndarray
    probabilities_NC: np.ndarray
    spread_NC: np.ndarray
    predicted_N: np.ndarray
    slides_N: np.ndarray
    targets_NK: np.ndarray
    decided: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.names)


def judge(
    names: Sequence[str],
    cases: Sequence[str],
    labels: Sequence[str | None],
    probabilities_NMC: np.ndarray,
    classes: Sequence[str],
    threshold: Threshold,
    slides_N: np.ndarray | None = None,
    *,
    task: Task | None = None,
    fitted: Fitted | None = None,
    targets_NK: np.ndarray | None = None,
) -> Verdicts:
    """Predict rows.

    Args:
        names, cases, labels, slides_N: see `Verdicts`; None stands for one slide each.
        probabilities_NMC: float64 probabilities of every network.
        classes: class names in the order of their indices.
        threshold: the decision threshold.
        task: what the networks predict; None for classification.
        fitted: what the task has fitted; None for the threshold alone.
        targets_NK: see `Verdicts`; None for classes.
    """
    task = task or restored(None, classes)
    mean_NC = task.average(probabilities_NMC)
    decided = task.decide(mean_NC, fitted if fitted is not None else {"threshold": threshold.value})
    predicted_N = np.zeros(len(names), np.int64)
    if task.has_classes and decided is not None:
        place = {name: c for c, name in enumerate(classes)}
        predicted_N = np.array([place[name] for name in decided], np.int64)
    index = {name: i for i, name in enumerate(classes)}
    return Verdicts(
        names=tuple(names),
        cases=tuple(cases),
        labels=tuple(labels),
        labels_N=np.array([index.get(name or "", UNKNOWN) for name in labels], np.int64),
        probabilities_NC=mean_NC,
        spread_NC=probabilities_NMC.std(1),
        predicted_N=predicted_N,
        slides_N=np.ones(len(names), np.int64) if slides_N is None else slides_N,
        targets_NK=np.zeros((len(names), 0)) if targets_NK is None else targets_NK,
        decided=None if decided is None else tuple(decided),
    )


def judge_cases(
    slides: Verdicts,
    probabilities_NMC: np.ndarray,
    unions: Mapping[str, np.ndarray],
    how: How,
    classes: Sequence[str],
    threshold: Threshold,
    *,
    task: Task | None = None,
    fitted: Fitted | None = None,
) -> tuple[Verdicts, list[str]]:
    """Predict cases, in the order of their first slide.

    Args:
        slides: the predictions of the slides.
        probabilities_NMC: their probabilities by every network.
        unions: with "union" and "attention", the probabilities of every case that has several slides, M x C.
        how: how a case follows from its slides.
        classes, threshold, task, fitted: as in `judge`.

    Returns:
        The predictions, and the cases whose slides have different labels: their label counts as unknown.
    """
    places: dict[str, list[int]] = {}
    for place, case in enumerate(slides.cases):
        places.setdefault(case, []).append(place)
    task = task or restored(None, classes)
    labels: list[str | None] = []
    torn, targets = [], []
    parts = []
    for case, each in places.items():
        said = {slides.labels[place] for place in each} - {None}
        labels.append(next(iter(said)) if len(said) == 1 else None)
        targets_SK = slides.targets_NK[each]
        targets_K = united(targets_SK)
        targets.append(np.full(targets_SK.shape[1], np.nan) if targets_K is None else targets_K)
        torn += [case] if len(said) > 1 or targets_K is None else []
        if how == "mean" or how == "max":
            parts.append(task.of_case(probabilities_NMC[each], how))
        else:
            parts.append(unions[case] if len(each) > 1 else probabilities_NMC[each[0]])
    counts_N = np.array([len(each) for each in places.values()], np.int64)
    cases = list(places)
    judged = judge(
        cases,
        cases,
        labels,
        np.stack(parts),
        classes,
        threshold,
        counts_N,
        task=task,
        fitted=fitted,
        targets_NK=np.stack(targets),
    )
    return judged, torn
