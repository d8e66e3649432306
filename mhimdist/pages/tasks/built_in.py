"""The pages of the package's own tasks: from what a network predicts to the arrays, sections and figures.

Dimensions: T times of a grid.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.pages.tasks.bags import Followed, Graded, Labelled, Valued
from mhimdist.pages.tasks.interface import Drawing, JudgedNetwork, Networks, TaskPage
from mhimdist.pages.tasks.multilabel import multilabel_sections
from mhimdist.pages.tasks.ordinal import ordinal_sections
from mhimdist.pages.tasks.regression import regression_sections
from mhimdist.pages.tasks.survival import survival_sections
from mhimdist.report.blocks import Section
from mhimdist.statistics.survival_curves import cut_points
from mhimdist.tasks import Task


class OrdinalPage(TaskPage):
    """The page of grades."""

    def network(self, network: JudgedNetwork) -> Graded:
        """See `TaskPage.network`."""
        task, judged = network.task, network.judged
        grade = {name: place for place, name in enumerate(task.classes)}
        decided = task.decide(judged.predictions_NP, network.fitted) or ()
        return Graded(
            **network.who,
            labels_N=judged.labels_N,
            predicted_N=np.array([grade[name] for name in decided], dtype=np.int64),
            num_classes=len(task.classes),
            probabilities_NC=judged.predictions_NP,
        )

    def sections(self, task: Task, configurations: Networks) -> list[Section]:
        """See `TaskPage.sections`."""
        return ordinal_sections(configurations, task.classes)

    def drawings(self, task: Task, configurations: Networks) -> Iterator[Drawing]:
        """See `TaskPage.drawings`."""
        from mhimdist.pages.tasks.print import ordinal_drawings

        return ordinal_drawings(configurations, task.classes)


class RegressionPage(TaskPage):
    """The page of values."""

    def network(self, network: JudgedNetwork) -> Valued:
        """See `TaskPage.network`."""
        judged = network.judged
        return Valued(
            **network.who,
            targets_NK=judged.targets_NK,
            predicted_NK=judged.predictions_NP,
            columns=network.task.info.columns,
        )

    def sections(self, task: Task, configurations: Networks) -> list[Section]:
        """See `TaskPage.sections`."""
        return regression_sections(configurations, unit=task.info.unit)

    def drawings(self, task: Task, configurations: Networks) -> Iterator[Drawing]:
        """See `TaskPage.drawings`."""
        from mhimdist.pages.tasks.print import regression_drawings

        return regression_drawings(configurations, task.info.unit)


class MultilabelPage(TaskPage):
    """The page of several labels."""

    def network(self, network: JudgedNetwork) -> Labelled:
        """See `TaskPage.network`."""
        judged, chosen = network.judged, network.fitted.get("thresholds")
        return Labelled(
            **network.who,
            targets_NK=judged.targets_NK,
            probabilities_NK=judged.predictions_NP,
            columns=network.task.info.columns,
            thresholds_K=None if chosen is None else np.array(chosen, dtype=np.float64),
        )

    def sections(self, task: Task, configurations: Networks) -> list[Section]:
        """See `TaskPage.sections`."""
        return multilabel_sections(configurations)

    def drawings(self, task: Task, configurations: Networks) -> Iterator[Drawing]:
        """See `TaskPage.drawings`."""
        from mhimdist.pages.tasks.print import multilabel_drawings

        return multilabel_drawings(configurations)


class SurvivalPage(TaskPage):
    """The page of follow-up."""

    def network(self, network: JudgedNetwork) -> Followed:
        """See `TaskPage.network`.

        Raises:
            UndefinedError: there are to be more than two groups, and the bags that selected are not known.
        """
        task: Any = network.task  # whichever names this page: `Survival`, or a task like it
        judged = network.judged
        grid = task.learnt.get("grid") or ()
        times_N, events_N = judged.targets_NK.T
        return Followed(
            **network.who,
            times_N=times_N,
            events_N=events_N,
            risks_N=judged.predictions_NP[:, 0],
            cuts=_cuts(network),
            grid_T=np.array(grid, dtype=np.float64) if len(grid) else None,
            survival_NT=task.survival_at_grid(judged.predictions_NP, network.fitted) if len(grid) else None,
            free=task.censoring,
        )

    def sections(self, task: Task, configurations: Networks) -> list[Section]:
        """See `TaskPage.sections`."""
        return survival_sections(configurations, unit=task.info.unit)

    def drawings(self, task: Task, configurations: Networks) -> Iterator[Drawing]:
        """See `TaskPage.drawings`."""
        from mhimdist.pages.tasks.print import survival_drawings

        return survival_drawings(configurations, task.info.unit)


def _cuts(network: JudgedNetwork) -> np.ndarray:
    """The risks between the groups: of two the median that the task has fitted."""
    if network.num_groups == 2:
        median = network.fitted.get("median_risk")
        return np.empty(0) if median is None else np.array([median], dtype=np.float64)
    if network.validation is None:
        raise UndefinedError(
            f"{network.num_groups} groups of risk need the validation bags' risks: not recorded here"
        )
    return cut_points(network.validation.predictions_NP[:, 0], network.num_groups)
