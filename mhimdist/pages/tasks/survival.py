"""The sections on survival: concordance, curves of risk groups, measures over time, calibration.

Dimensions: N bags or cases, T times of a grid, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mhimdist.errors import UndefinedError
from mhimdist.pages.tasks.bags import Followed
from mhimdist.pages.tasks.measures import by_seed, measures_table
from mhimdist.report import blocks, formats, outcome_plots
from mhimdist.report.blocks import Cell, Section
from mhimdist.report.outcome_plots import Line, Point
from mhimdist.report.score_plots import MOST_CURVES
from mhimdist.statistics import survival
from mhimdist.statistics.bootstrap import Weighed, estimates
from mhimdist.statistics.survival_curves import (
    KaplanMeier,
    LogRank,
    by_case,
    kaplan_meier,
    log_rank,
    numbers_at_risk,
    risk_groups,
)

HEADINGS = {
    "harrell_c": "Harrell's C",
    "uno_c": "Uno's C",
    "dynamic_auc": "AUC over time",
    "ibs": "integrated Brier score",
}
NUM_POINTS = 20
"""Times of the figures over time."""
NUM_CALIBRATION_GROUPS = 5
_NAMES = {2: ("low risk", "high risk"), 3: ("low risk", "medium risk", "high risk")}


@dataclass(frozen=True)
class RiskGroups:
    """The test cases of the networks of one seed, by the cut points of each network's validation cases.

    Attributes:
        curves: the curve of each group that has cases, by its name.
        times: the times of each group's cases.
        test: the log-rank test; None if it is undefined.
        why: why there is no test.
        num_torn: the number of cases that are left out, because their slides differ in time or event.
    """

    curves: dict[str, KaplanMeier]
    times: dict[str, np.ndarray]
    test: LogRank | None
    why: str = ""
    num_torn: int = 0

    @property
    def text(self) -> str:
        """The test in words."""
        if self.test is None:
            return f"No log-rank test: {self.why}."
        p = "p < 0.001" if self.test.p < 0.001 else f"p = {self.test.p:.3f}"
        return f"Log-rank {p} (χ² = {self.test.statistic:.2f}, df = {self.test.degrees})."


def grouped(networks: Sequence[Followed]) -> RiskGroups:
    """Divide the test cases of the networks of one seed by risk, and compare the groups.

    Args:
        networks: of different folds, so that each case is tested once.

    Raises:
        UndefinedError: the networks have different numbers of groups.
    """
    if len(sizes := {len(each.cuts) for each in networks}) > 1:
        raise UndefinedError(f"expected as many cut points for every network, got {sorted(sizes)}")
    times, events, groups = [], [], []
    for each in networks:
        times_N, events_N, risks_N = _of_cases(each, each.risks_N)
        times.append(times_N)
        events.append(events_N)
        groups.append(risk_groups(risks_N, each.cuts))
    times_N, events_N, groups_N = (np.concatenate(each) for each in (times, events, groups))
    number = len(networks[0].cuts) + 1
    names = _NAMES.get(number, tuple(f"risk group {g + 1}" for g in range(number)))
    num_torn = len({case for each in networks for case in each.cases}) - len(times_N)
    present = [g for g in range(number) if (groups_N == g).any()]
    curves = {names[g]: kaplan_meier(times_N[groups_N == g], events_N[groups_N == g]) for g in present}
    of_group = {names[g]: times_N[groups_N == g] for g in present}
    try:
        return RiskGroups(curves, of_group, log_rank(times_N, events_N, groups_N), num_torn=num_torn)
    except UndefinedError as error:
        return RiskGroups(curves, of_group, None, str(error), num_torn)


def _of_cases(network: Followed, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, event and mean value of each case; a case whose slides differ in the first two is left out."""
    outcomes: dict[str, set[tuple[float, bool]]] = {}
    for case, time, event in zip(network.cases, network.times_N, network.events_N, strict=True):
        outcomes.setdefault(case, set()).add((float(time), bool(event)))
    rows = [row for row, case in enumerate(network.cases) if len(outcomes[case]) == 1]
    cases = [network.cases[row] for row in rows]
    return by_case(cases, network.times_N[rows], network.events_N[rows], values_N[rows])[1:]


def survival_sections(configurations: Mapping[str, Sequence[Followed]], *, unit: str = "") -> list[Section]:
    """What a page says of survival.

    Args:
        configurations: the networks of each configuration.
        unit: the unit of the times, such as "months"; may be empty.
    """
    shown = dict(list(configurations.items())[:MOST_CURVES])
    own = any(each.free is None for networks in configurations.values() for each in networks)
    caption = (
        "C: the share of comparable pairs in the right order, 0.5 is chance; Uno's weighs them by the chance "
        "of not being censored. AUC over time: events until a time against those still at risk, mean over "
        "the times. Brier score: squared error of the survival probabilities over time, 0 is best."
    )
    if own:
        caption += " Censoring is estimated on the test cases: the training cases' is not known here."
    return [
        blocks.section("results", "Results", measures_table(configurations, HEADINGS, caption=caption)),
        blocks.section(
            "survival",
            "Survival of risk groups",
            *(
                part
                for number, (name, networks) in enumerate(shown.items())
                for part in _groups(name, networks, number, unit)
            ),
        ),
        blocks.section("over-time", "Discrimination and error over time", _over_time(shown, unit)),
        blocks.section("calibration", "Calibration", _calibration(shown, unit)),
    ]


def _groups(name: str, networks: Sequence[Followed], number: int, unit: str) -> list[Markup]:
    """The curves of the first seed's groups, and a table of all seeds'."""
    if not all(len(each.cuts) for each in networks):
        return []
    seeds = [[networks[place] for place in places] for places in by_seed(networks)]
    found = [grouped(each) for each in seeds]
    first = found[0]
    if not first.curves:
        text = f"{name}: no risk groups, because the slides of every case differ in time or event."
        return [blocks.paragraph(text)]
    last = max(float(times.max()) for times in first.times.values())
    marks_T = outcome_plots.marks(last)
    at_risk = {group: numbers_at_risk(times, marks_T) for group, times in first.times.items()}
    drawn = outcome_plots.survival_figure(first.curves, at_risk, marks_T, unit)
    caption = (
        f"{first.text} Each network's validation cases set the cut points between the groups; a case counts "
        "once, with the mean risk of its slides. Bands: 95 %, Greenwood on the log-log scale. Ticks: "
        "censored cases."
    )
    if first.num_torn:
        torn = formats.count(first.num_torn, "case")
        caption += f" Left out: {torn} whose slides differ in time or event."
    if len(seeds) > 1:
        caption += f" Seed {seeds[0][0].seed}; the table has the other seeds."
    rows: list[list[str | Cell]] = []
    for of_seed, groups in zip(seeds, found, strict=True):
        for g, (group, curve) in enumerate(groups.curves.items()):
            median = "not reached" if curve.median is None else f"{curve.median:.4g} {unit}".strip()
            rows.append(
                [
                    group + (f", seed {of_seed[0].seed}" if len(seeds) > 1 else ""),
                    f"{curve.at_risk_U[0]:,}",
                    f"{int(curve.events_U.sum()):,}",
                    median,
                    _p_text(groups) if g == 0 else "",
                ]
            )
    header = ["group", "cases", "events", "median time without event", "log-rank p"]
    table = blocks.table(f"groups-{number}", header, rows)
    return [blocks.heading(name), blocks.figure(drawn, caption, title="Kaplan-Meier curves"), table]


def _p_text(groups: RiskGroups) -> str:
    if groups.test is None:
        return formats.NONE
    return "< 0.001" if groups.test.p < 0.001 else f"{groups.test.p:.3f}"


def common_grid(networks: Sequence[Followed]) -> np.ndarray:
    """Times that lie in the grid of every network; empty if they share none."""
    grids = [each.points_T for each in networks]
    if not all(len(grid) for grid in grids):
        return np.empty(0)
    first, last = max(grid[0] for grid in grids), min(grid[-1] for grid in grids)
    return np.unique(np.linspace(first, last, NUM_POINTS)) if first <= last else np.empty(0)


def line_over_time(networks: Sequence[Followed], measure: str) -> Line | None:
    """The mean of a measure over the networks at each time, with its interval; None if there is none.

    Args:
        networks: the networks.
        measure: "auc" or "brier".
    """
    points_T = common_grid(networks)
    if not len(points_T) or (measure == "brier" and any(each.survival_NT is None for each in networks)):
        return None

    def weighed(each: Followed) -> Weighed:
        def values(weights_RN: np.ndarray) -> dict[str, np.ndarray]:
            if measure == "auc":
                found_RT = survival.dynamic_aucs(
                    each.times_N,
                    each.events_N,
                    each.risks_N,
                    points_T,
                    weights_RN=weights_RN,
                    free=each.censoring,
                )
            else:
                found_RT = survival.brier_scores(
                    each.times_N,
                    each.events_N,
                    survival_at(each, points_T),
                    points_T,
                    weights_RN=weights_RN,
                    free=each.censoring,
                )
            return {str(t): found_RT[:, t] for t in range(len(points_T))}

        return Weighed(each.cases, values)

    found = estimates([weighed(each) for each in networks], num_resamples=200).values()
    value_3T = np.array([(e.value, e.low, e.high) if e else (np.nan,) * 3 for e in found]).T
    return Line(points_T, *value_3T) if np.isfinite(value_3T[0]).any() else None


def survival_at(each: Followed, times_T: np.ndarray) -> np.ndarray:
    """The predicted survival at these times, straight between the times of the network's grid."""
    assert each.survival_NT is not None, "whoever asks has looked"
    own_T = np.concatenate([[0.0], each.points_T])
    rows = [np.interp(times_T, own_T, np.concatenate([[1.0], row_T])) for row_T in each.survival_NT]
    return np.stack(rows).clip(0, 1)


def _over_time(shown: Mapping[str, Sequence[Followed]], unit: str) -> Markup:
    aucs = {name: line for name, each in shown.items() if (line := line_over_time(each, "auc"))}
    briers = {name: line for name, each in shown.items() if (line := line_over_time(each, "brier"))}
    parts = []
    if aucs:
        drawn = outcome_plots.over_time_figure(aucs, y_title="AUC", unit=unit, chance=0.5)
        caption = "Mean over the networks; band: 95 % bootstrap interval by case. Dotted: chance."
        parts.append(blocks.figure(drawn, caption, title="Cumulative/dynamic AUC"))
    if briers:
        without = line_without_model(next(iter(shown.values())))
        drawn = outcome_plots.over_time_figure(
            briers, y_title="Brier score", unit=unit, without_model=without
        )
        caption = "Lower is better. Without a model, every case has the Kaplan-Meier curve of all test cases."
        parts.append(blocks.figure(drawn, caption, title="Brier score under censoring"))
    return blocks.side_by_side(*parts)


def line_without_model(networks: Sequence[Followed]) -> Line:
    """The mean Brier score of giving every test case the Kaplan-Meier curve of a network's test cases."""
    points_T = common_grid(networks)
    scores = []
    for each in networks:
        curve = kaplan_meier(each.times_N, each.events_N)
        # After the last test case the curve stays as it is.
        chance_T = curve.at(np.minimum(points_T, curve.times_U[-1]))
        chance_NT = np.tile(chance_T, (len(each.times_N), 1))
        found_RT = survival.brier_scores(
            each.times_N, each.events_N, chance_NT, points_T, free=each.censoring
        )
        scores.append(found_RT[0])
    return Line(points_T, np.mean(scores, axis=0))


def calibration_points(networks: Sequence[Followed]) -> tuple[float, list[Point]]:
    """The horizon, the middle of the common grid, and what was promised until it and what came, by group.

    Args:
        networks: of one seed, with survival probabilities.
    """
    points_T = common_grid(networks)
    horizon = float(points_T[len(points_T) // 2])
    times, events, promised = [], [], []
    for each in networks:
        at_N = survival_at(each, np.array([horizon]))[:, 0]
        times_N, events_N, promised_N = _of_cases(each, at_N)
        times.append(times_N)
        events.append(events_N)
        promised.append(promised_N)
    times_N, events_N, promised_N = (np.concatenate(each) for each in (times, events, promised))
    if not len(promised_N):
        return horizon, []
    edges = np.quantile(promised_N, np.arange(1, NUM_CALIBRATION_GROUPS) / NUM_CALIBRATION_GROUPS)
    groups_N = np.searchsorted(edges, promised_N, side="left")
    found = []
    for group in np.unique(groups_N):
        inside_N = groups_N == group
        curve = kaplan_meier(times_N[inside_N], events_N[inside_N])
        observed = float(curve.at(np.array([horizon]))[0])
        at = int(np.searchsorted(curve.times_U, horizon, side="right")) - 1
        low, high = float(curve.low_U[at]), float(curve.high_U[at])
        if np.isfinite(observed):  # otherwise nobody of the group is followed for so long
            ends = (low, high) if np.isfinite(low) else (observed, observed)
            found.append(Point(float(promised_N[inside_N].mean()), observed, *ends, int(inside_N.sum())))
    return horizon, found


def _calibration(shown: Mapping[str, Sequence[Followed]], unit: str) -> Markup:
    points, horizons = {}, []
    for name, networks in shown.items():
        of_first = [networks[place] for place in by_seed(networks)[0]]
        if any(each.survival_NT is None for each in of_first) or not len(common_grid(of_first)):
            continue
        horizon, found = calibration_points(of_first)
        if found:
            points[name] = found
            horizons.append(horizon)
    if not points:
        return Markup("")
    until = f"{horizons[0]:.4g} {unit}".strip()
    caption = (
        f"Cases in {NUM_CALIBRATION_GROUPS} groups of one size by their predicted survival at {until}; "
        "observed: their Kaplan-Meier estimate with its 95 % interval. A point below the diagonal: too "
        "hopeful. The first seed's networks, pooled."
    )
    drawn = outcome_plots.promise_figure(points, what="share without event")
    return blocks.figure(drawn, caption, title=f"Survival at {until}")
