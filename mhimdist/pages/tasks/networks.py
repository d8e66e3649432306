"""From a task and a network's predictions to the sections of a page: the one door for whoever writes pages.

A task whose name is not in `SECTIONS`, such as a task of yours, gets the table of its own measures.

Dimensions: N bags, K targets, P predictions of a bag, T times of a grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.pages.tasks import SECTIONS
from mhimdist.pages.tasks.bags import Followed, Graded, Labelled, Valued
from mhimdist.pages.tasks.measures import measures_table
from mhimdist.report import blocks
from mhimdist.report.blocks import Section
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.statistics.survival_curves import cut_points
from mhimdist.tasks import Judged, Task


@dataclass(frozen=True)
class Scored:
    """A network of a task that has no sections of its own.

    Attributes:
        weighed: the task's measures, as functions of weights.
        seed: the network's seed.
    """

    weighed: Weighed
    seed: int | None = None


Tested = Graded | Valued | Labelled | Followed | Scored


def network_of(
    task: Task,
    judged: Judged,
    fitted: Mapping[str, Any],
    *,
    keys: Sequence[str],
    seed: int | None = None,
    validation: Judged | None = None,
    num_groups: int = 2,
) -> Tested:
    """One network's test bags as its task's sections take them.

    Args:
        task: the network's task.
        judged: truth, predictions and cases of the bags.
        fitted: what the task fitted on the bags that selected.
        keys: the names of the bags.
        seed: the network's seed.
        validation: the bags that selected, if they are known.
        num_groups: groups of risk to divide the bags into, where a task has risks.

    Raises:
        UndefinedError: there are to be more than two groups, and the bags that selected are not known.
    """
    who: dict[str, Any] = {"keys": keys, "cases": judged.cases, "seed": seed}
    if task.name == "ordinal":
        grade = {name: place for place, name in enumerate(task.classes)}
        decided = task.decide(judged.predictions_NP, fitted) or ()
        return Graded(
            **who,
            labels_N=judged.labels_N,
            predicted_N=np.array([grade[name] for name in decided], dtype=np.int64),
            num_classes=len(task.classes),
            probabilities_NC=judged.predictions_NP,
        )
    if task.name == "regression":
        columns = task.info.columns
        return Valued(
            **who, targets_NK=judged.targets_NK, predicted_NK=judged.predictions_NP, columns=columns
        )
    if task.name == "multilabel":
        chosen = fitted.get("thresholds")
        return Labelled(
            **who,
            targets_NK=judged.targets_NK,
            probabilities_NK=judged.predictions_NP,
            columns=task.info.columns,
            thresholds_K=None if chosen is None else np.array(chosen, dtype=np.float64),
        )
    if task.name == "survival":
        return _followed(task, judged, fitted, who, _cuts(fitted, validation, num_groups))
    return Scored(task.weighed(judged, fitted), seed)


def _cuts(fitted: Mapping[str, Any], validation: Judged | None, num_groups: int) -> np.ndarray:
    """The risks between the groups: of two the median that the task has fitted."""
    if num_groups == 2:
        median = fitted.get("median_risk")
        return np.empty(0) if median is None else np.array([median], dtype=np.float64)
    if validation is None:
        raise UndefinedError(
            f"{num_groups} groups of risk need the validation bags' risks: not recorded here"
        )
    return cut_points(validation.predictions_NP[:, 0], num_groups)


def _followed(
    task: Any,
    judged: Judged,
    fitted: Mapping[str, Any],
    who: Mapping[str, Any],
    cuts: np.ndarray,
) -> Followed:
    grid = task.learnt.get("grid") or ()
    times_N, events_N = judged.targets_NK.T
    return Followed(
        **who,
        times_N=times_N,
        events_N=events_N,
        risks_N=judged.predictions_NP[:, 0],
        cuts=cuts,
        grid_T=np.array(grid, dtype=np.float64) if len(grid) else None,
        survival_NT=task.survival_at_grid(judged.predictions_NP, fitted) if len(grid) else None,
        free=task.censoring,
    )


def task_sections(task: Task, configurations: Mapping[str, Sequence[Any]]) -> list[Section]:
    """What a page says of a task's results.

    Args:
        task: the task.
        configurations: the networks of each configuration, from `network_of`.
    """
    if task.name in SECTIONS:
        return SECTIONS[task.name](configurations, **_options(task))
    return [blocks.section("results", "Results", measures_table(configurations, task.headings, caption=""))]


def task_figures(task: Task, configurations: Mapping[str, Sequence[Any]], folder: Path) -> list[Path]:
    """Write the task's figures as vector PDF; none for a task without sections of its own.

    Args:
        task, configurations: as in `task_sections`.
        folder: receives the files.

    Raises:
        DiskFullError: a file does not fit on the disk.
    """
    if task.name not in SECTIONS:
        return []
    from mhimdist.pages.tasks.print import (
        write_task_figures,
    )  # a second to import, which a page does not need

    return write_task_figures(task.name, configurations, folder, **_options(task))


def _options(task: Task) -> dict[str, Any]:
    """What the sections of this task take besides the networks."""
    if task.name == "ordinal":
        return {"classes": task.classes}
    return {"unit": task.info.unit} if task.name in ("survival", "regression") else {}
