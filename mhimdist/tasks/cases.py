"""From the predictions of slides to those of cases, as every task defines it.

Dimensions: see `tasks.interface`.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mhimdist.data import targets
from mhimdist.tasks.interface import Judged, Metrics, Task

CaseRule = Literal["mean", "max"]
CASE_RULES: tuple[CaseRule, ...] = ("mean", "max")


def by_case(task: Task, slides: Judged, how: CaseRule) -> Judged:
    """The cases of slides, in the order of their first slides, each predicted as `Task.of_case` says.

    A case whose slides have different labels or targets has none, and is left out.
    """
    places: dict[str, list[int]] = {}
    for place, case in enumerate(slides.cases):
        places.setdefault(case, []).append(place)
    found = [(each, _truth(task, slides.at(each))) for each in places.values()]
    whole = [(each, truth) for each, truth in found if truth is not None]
    parts = [task.of_case(slides.predictions_NP[each][:, None], how)[0] for each, _ in whole]
    cases = slides.at([each[0] for each, _ in whole])
    return Judged(
        cases.labels_N,
        np.stack([truth for _, truth in whole]) if whole else cases.targets_NK,
        np.stack(parts) if parts else cases.predictions_NP,
        cases.cases,
    )


def _truth(task: Task, slides: Judged) -> np.ndarray | None:
    """The targets of the case of some slides, none of them for classes; None if two slides differ."""
    if task.has_classes and len(set(slides.labels_N.tolist())) > 1:
        return None
    return targets.united(slides.targets_NK)


def case_metrics(
    task: Task, validation: Sequence[Judged], test: Judged
) -> dict[str, Mapping[str, float | None]]:
    """Metrics of the test cases by each rule, with what the task fits on the validation cases by that rule.

    Args:
        task: the task.
        validation: the slides that select, by each network that predicts of them, as in `Task.fit_by_all`.
        test: the slides to judge.

    Returns:
        Empty if every test case has one slide: they are those of the slides. Empty, too, if the validation or
        the test cases with one label cannot be judged, such as those of a single class.
    """
    if len(set(test.cases)) == len(test.cases):
        return {}
    found: dict[str, Mapping[str, float | None]] = {}
    for how in CASE_RULES:
        parts = [Judged.pooled(validation)] if task.pools else validation
        selecting, tested = [by_case(task, part, how) for part in parts], by_case(task, test, how)
        if not all(_is_judged(task, each) for each in (*selecting, tested)):
            return {}
        metrics: Metrics = task.metrics(tested, task.fit_by_all(selecting))
        found[how] = metrics | {"cases": float(len(tested))}
    return found


def _is_judged(task: Task, judged: Judged) -> bool:
    return len(judged) > 0 and not task.fault(judged, False) and task.score(judged) is not None
