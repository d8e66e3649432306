"""`TaskPage`: what a page says of a task's results. Every task names its own, by `Task.page`.

Dimensions: N bags, P predictions of a bag.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mhimdist.pages.tasks.measures import measures_table
from mhimdist.report import blocks
from mhimdist.report.blocks import Section
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.tasks import Judged, Task

if TYPE_CHECKING:  # a second to import, which a page does not need
    from matplotlib.axes import Axes

Drawing = tuple[str, "Callable[[Axes], None]"]
"""The name of a figure's file, and what draws it on an axis."""
Networks = Mapping[str, Sequence[Any]]
"""The networks of each configuration, as `TaskPage.network` makes them."""


@dataclass(frozen=True, kw_only=True)
class JudgedNetwork:
    """A network of a task, and its test bags.

    Attributes:
        task: what the network predicts.
        judged: truth, predictions and cases of the bags.
        fitted: what the task fitted on the bags that selected.
        keys: the names of the bags.
        seed: the network's seed.
        validation: the bags that selected, if they are known.
        num_groups: groups of risk to divide the bags into, where a task has risks.
    """

    task: Task
    judged: Judged
    fitted: Mapping[str, Any]
    keys: Sequence[str]
    seed: int | None = None
    validation: Judged | None = None
    num_groups: int = 2

    @property
    def who(self) -> dict[str, Any]:
        """The names and cases of the bags, and the seed."""
        return {"keys": self.keys, "cases": self.judged.cases, "seed": self.seed}


@dataclass(frozen=True)
class Scored:
    """A network as the table of measures takes it.

    Attributes:
        weighed: the task's measures, as functions of weights.
        seed: the network's seed.
    """

    weighed: Weighed
    seed: int | None = None


class TaskPage:
    """The sections and figures of a task: here a table of its measures; a page of its own may add others."""

    def network(self, network: JudgedNetwork) -> Any:
        """A network as the other two take it; at least its `seed` and its measures, as `weighed`.

        Raises:
            UndefinedError: something is asked for that needs what is not known.
        """
        return Scored(network.task.weighed(network.judged, network.fitted), network.seed)

    def sections(self, task: Task, configurations: Networks) -> list[Section]:
        """The sections of a page; the first one has the results.

        Args:
            task: the task.
            configurations: the networks of each configuration, at least one.
        """
        table = measures_table(configurations, task.headings, caption="")
        return [blocks.section("results", "Results", table)]

    def drawings(self, task: Task, configurations: Networks) -> Iterator[Drawing]:
        """The figures for a publication, a file each; by default none.

        Args:
            task, configurations: as in `sections`.
        """
        return iter(())
