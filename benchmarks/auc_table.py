"""What the runs of `time_to_auc` say: the seconds of each setting to the same AUC, and a table of them."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.auc_runs import NETWORKS, ONE, SETTINGS

REACHED = 0.99
"""Share of the best AUC of one bag per step that is the target."""


def best_auc(measured: Mapping[str, Any]) -> float:
    """The best AUC of a run."""
    return float(max(epoch["auc"] for epoch in measured["curve"]))


def reached(measured: Mapping[str, Any], target: float) -> dict[str, float] | None:
    """When a run was first at the target: epochs and seconds, first stage included; None if it never was."""
    for number, epoch in enumerate(measured["curve"], 1):
        if epoch["auc"] >= target:
            seconds = {name: epoch[name] + measured["first_stage"][name] for name in measured["first_stage"]}
            return {"epochs": number, **seconds}
    return None


def summary(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per data set, network and setting, in the order of `SETTINGS`.

    Rows without a run of one bag per step have no target, and are left out.
    """
    by_key = {(m["data"], m["network"], m["setting"], m["seed"]): m for m in measured}
    rows = []
    for data, network in sorted({(m["data"], m["network"]) for m in measured}):
        for setting in SETTINGS:
            pairs = [
                (m, by_key[data, network, ONE, m["seed"]])
                for m in measured
                if (m["data"], m["network"], m["setting"]) == (data, network, setting)
                and (data, network, ONE, m["seed"]) in by_key
            ]
            if pairs:
                rows.append({"data": data, "network": network, "setting": setting} | _row(pairs))
    return rows


def _row(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures of a setting from its runs, each with that of one bag per step."""
    clock, times, ratios = pairs[0][0]["clock"], [], []
    for mine, one in pairs:
        target = REACHED * best_auc(one)
        own, theirs = reached(mine, target), reached(one, target)
        if own is not None and theirs is not None:
            times.append(own)
            ratios.append(own[clock] / theirs[clock])

    def median(name: str) -> float | None:
        return round(statistics.median(each[name] for each in times), 2) if times else None

    return {
        "seeds": len(pairs),
        "reached": len(times),
        "clock": clock,
        "best_auc": round(statistics.mean(best_auc(mine) for mine, _ in pairs), 4),
        "epochs": median("epochs"),
        "processor_s": median("processor_s"),
        "seconds_of_each": sorted(round(each[clock], 2) for each in times),
        "wall_s": median("wall_s"),
        "ratio": round(statistics.median(ratios), 2) if ratios else None,
        "seconds_an_epoch": round(
            statistics.median(mine["curve"][-1][clock] / len(mine["curve"]) for mine, _ in pairs), 3
        ),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows in Markdown, a table per data set and network: first the seconds that the ratios are of."""
    seen = None
    for row in rows:
        clocks = ("processor_s", "wall_s") if row["clock"] == "processor_s" else ("wall_s", "processor_s")
        if seen != (seen := (row["data"], row["network"])):
            first, second = (clock.removesuffix("_s") for clock in clocks)
            yield f"\n{row['data']}, {NETWORKS[row['network']]}:\n"
            yield (
                f"| setting | best AUC | at the target | epochs | {first}, s (each seed) | {second}, s | "
                f"to one bag a step | {first}, s an epoch |"
            )
            yield "|---|---:|---:|---:|---:|---:|---:|---:|"
        each = ", ".join(f"{value:.1f}" for value in row["seconds_of_each"])
        cells = [
            row["setting"],
            f"{row['best_auc']:.3f}",
            f"{row['reached']} of {row['seeds']}",
            _cell(row["epochs"], "g"),
            *(_cell(row[clock], ".1f") for clock in clocks),
            _cell(row["ratio"], ".2f"),
            f"{row['seconds_an_epoch']:.2f}",
        ]
        if each:
            cells[4] += f" ({each})"
        yield f"| {' | '.join(cells)} |"


def _cell(value: float | None, form: str) -> str:
    return "not reached" if value is None else format(value, form)
