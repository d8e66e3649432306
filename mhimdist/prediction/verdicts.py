"""From the networks' probabilities to predictions of slides and cases.

Dimensions: N slides or cases, S slides of a case, M networks, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mhimdist.prediction.members import Member
from mhimdist.prediction.sources import UNKNOWN
from mhimdist.statistics.cases import of_case

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
    if len(members[0].classes) != 2:
        return Threshold(None, "the most probable class")
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
        probabilities_NC: float64 mean over the networks.
        spread_NC: float64 standard deviation over the networks; 0 for one.
        predicted_N: int64 index of the predicted class.
        slides_N: int64 number of slides of every row.
    """

    names: tuple[str, ...]
    cases: tuple[str, ...]
    labels: tuple[str | None, ...]
    labels_N: np.ndarray
    probabilities_NC: np.ndarray
    spread_NC: np.ndarray
    predicted_N: np.ndarray
    slides_N: np.ndarray

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
) -> Verdicts:
    """Predict rows.

    Args:
        names, cases, labels, slides_N: see `Verdicts`; None stands for one slide each.
        probabilities_NMC: float64 probabilities of every network.
        classes: class names in the order of their indices.
        threshold: the decision threshold.
    """
    mean_NC = probabilities_NMC.mean(1)
    if threshold.value is None:
        predicted_N = mean_NC.argmax(1)
    else:
        predicted_N = (mean_NC[:, 1] >= threshold.value).astype(np.int64)
    index = {name: i for i, name in enumerate(classes)}
    return Verdicts(
        names=tuple(names),
        cases=tuple(cases),
        labels=tuple(labels),
        labels_N=np.array([UNKNOWN if name is None else index[name] for name in labels], np.int64),
        probabilities_NC=mean_NC,
        spread_NC=probabilities_NMC.std(1),
        predicted_N=predicted_N,
        slides_N=np.ones(len(names), np.int64) if slides_N is None else slides_N,
    )


def judge_cases(
    slides: Verdicts,
    probabilities_NMC: np.ndarray,
    unions: Mapping[str, np.ndarray],
    how: How,
    classes: Sequence[str],
    threshold: Threshold,
) -> tuple[Verdicts, list[str]]:
    """Predict cases, in the order of their first slide.

    Args:
        slides: the predictions of the slides.
        probabilities_NMC: their probabilities by every network.
        unions: with "union" and "attention", the probabilities of every case that has several slides, M x C.
        how: how a case follows from its slides.
        classes, threshold: as in `judge`.

    Returns:
        The predictions, and the cases whose slides have different labels: their label counts as unknown.
    """
    places: dict[str, list[int]] = {}
    for place, case in enumerate(slides.cases):
        places.setdefault(case, []).append(place)
    labels: list[str | None] = []
    torn = []
    parts = []
    for case, each in places.items():
        said = {slides.labels[place] for place in each} - {None}
        labels.append(next(iter(said)) if len(said) == 1 else None)
        torn += [case] if len(said) > 1 else []
        if how == "mean" or how == "max":
            parts.append(of_case(probabilities_NMC[each], how))
        else:
            parts.append(unions[case] if len(each) > 1 else probabilities_NMC[each[0]])
    counts_N = np.array([len(each) for each in places.values()], np.int64)
    cases = list(places)
    return judge(cases, cases, labels, np.stack(parts), classes, threshold, counts_N), torn
