"""The table of measures that every task's page begins with, and the table of single networks."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from markupsafe import Markup

from mhimdist.report import blocks, formats
from mhimdist.report.blocks import Cell
from mhimdist.statistics.bootstrap import Weighed, estimates
from mhimdist.statistics.metrics import mean_and_std
from mhimdist.statistics.results import Estimate


class Tested(Protocol):
    """A network with measures of its test bags."""

    @property
    def seed(self) -> int | None:
        """Its seed."""

    @property
    def weighed(self) -> Weighed:
        """Its measures, as functions of weights."""


def measures_table(
    configurations: Mapping[str, Sequence[Tested]],
    headings: Mapping[str, str],
    *,
    caption: str,
    name: str = "results-measures",
) -> Markup:
    """Mean, deviation and interval of measures, a row per configuration.

    Args:
        configurations: the networks of each configuration.
        headings: the heading of each measure to show.
        caption: what the measures are.
        name: the table's address in the page.
    """
    rows: list[list[str | Cell]] = []
    for called, networks in configurations.items():
        found = estimates([network.weighed for network in networks])
        of_seeds = [[networks[place].weighed.once() for place in places] for places in by_seed(networks)]
        cells = []
        for measure in headings:
            values = [
                [one for each in of_seed if (one := each.get(measure)) is not None] for of_seed in of_seeds
            ]
            values = [each for each in values if each]
            if not values:
                cells.append(Cell(formats.NONE, key=float("-inf")))
                continue
            mean, deviation = mean_and_std(values)
            text = _number(mean) + ("" if deviation is None else f" ± {_number(deviation)}")
            ends = found.get(measure)
            cells.append(Cell(text, _ends(ends), key=mean))
        rows.append([Cell(called, formats.count(len(networks), "network")), *cells])
    several = any(len(each) > 1 for each in configurations.values())
    seeds = any(len({network.seed for network in each}) > 1 for each in configurations.values())
    over = "the seeds, each with its mean over the folds" if seeds else "the folds"
    mean_text = f"Mean ± standard deviation over {over}. " if several else ""
    below = "Below: 95 % bootstrap interval from 1,000 resamples of the cases. "
    return blocks.table(
        name,
        ["configuration", *headings.values()],
        rows,
        caption=mean_text + below + caption,
        sortable=len(rows) > 1,
    )


def _ends(found: Estimate | None) -> str:
    if found is None:
        return ""
    joint = " to " if found.low < 0 else "–"
    return f"{_number(found.low)}{joint}{_number(found.high)}"


def _number(value: float) -> str:
    """Three decimals, or as many digits as a value in some unit needs."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.4g}"


def by_seed(networks: Sequence[Tested]) -> list[list[int]]:
    """The places of the networks of each seed, in the order of the seeds' first networks."""
    found: dict[int | None, list[int]] = {}
    for place, network in enumerate(networks):
        found.setdefault(network.seed, []).append(place)
    return list(found.values())
