"""From the scores of slides to those of cases.

Dimensions: N slides, S slides of a case, C classes.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from mhimdist.statistics import metrics
from mhimdist.statistics.metrics import Scores

CaseRule = Literal["mean", "max"]
CASE_RULES: tuple[CaseRule, ...] = ("mean", "max")


def of_case(probabilities_SxC: np.ndarray, how: CaseRule) -> np.ndarray:
    """The probabilities of a case by those of its slides: the first dimension goes, the last is the class.

    With "max" and two classes, the case is as positive as its most positive slide. With more classes, each
    class has its largest probability over the slides, and these are divided by their sum.
    """
    if how == "mean":
        return probabilities_SxC.mean(0)
    largest_xC = probabilities_SxC.max(0)
    if largest_xC.shape[-1] == 2:
        return np.stack([1 - largest_xC[..., 1], largest_xC[..., 1]], axis=-1)
    return largest_xC / largest_xC.sum(-1, keepdims=True)


def by_case(scores: Scores, how: CaseRule) -> Scores:
    """The scores of cases, in the order of their first slides.

    A case whose slides have different labels has none, and is left out.
    """
    places: dict[str, list[int]] = {}
    for place, case in enumerate(scores.cases):
        places.setdefault(case, []).append(place)
    whole = {case: each for case, each in places.items() if len(set(scores.labels_N[each].tolist())) == 1}
    parts = [of_case(scores.probabilities_NC[each], how) for each in whole.values()]
    return Scores(
        scores.labels_N[[each[0] for each in whole.values()]],
        np.stack(parts) if parts else scores.probabilities_NC[:0],
        list(whole),
    )


def case_metrics(validation: Scores, test: Scores) -> dict[str, Mapping[str, float | None]]:
    """Metrics of the test cases by each rule, at the Youden threshold of the validation cases by that rule.

    Empty if every test case has one slide: they are those of the slides. Empty, too, if all validation or
    all test cases with one label have the same class.
    """
    if len(set(test.cases)) == len(test.cases):
        return {}
    found: dict[str, Mapping[str, float | None]] = {}
    for how in CASE_RULES:
        selecting, tested = by_case(validation, how), by_case(test, how)
        if len(set(selecting.labels_N.tolist())) < 2 or len(set(tested.labels_N.tolist())) < 2:
            return {}
        threshold = None
        if test.probabilities_NC.shape[1] == 2:
            threshold = metrics.youden_threshold(selecting.labels_N, selecting.probabilities_NC[:, 1])
        found[how] = metrics.classification(tested.labels_N, tested.probabilities_NC, threshold) | {
            "cases": float(len(tested.cases))
        }
    return found
