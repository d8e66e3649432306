"""The bars that a GPU has to reach, each met or missed by a value, or not measured."""

from collections.abc import Callable, Iterator
from typing import Any

_MODELS = ("abmil", "dsmil", "transmil")
ABMIL_BAGS_PER_S = 1000.0
TRANSMIL_TIMES = 5.0
READ_BAGS_PER_S = 500.0

Verdict = tuple[bool, str] | None
"""Whether a bar is met, and the value; None if it was not measured."""


def bars(result: dict[str, Any]) -> list[dict[str, str]]:
    """The verdict on every bar.

    Args:
        result: what the driver has written. Only a run on a GPU measures anything here.

    Returns:
        Rows of `bar`, `verdict` ("met", "missed" or "not measured") and `value`.
    """
    found = {name: part.get("found", {}) for name, part in result["parts"].items()}
    rows = []
    for bar, judge in _BARS.items():
        verdict = judge(found) if result["device"] == "cuda" else None
        if verdict is None:
            rows.append({"bar": bar, "verdict": "not measured", "value": ""})
        else:
            met, value = verdict
            rows.append({"bar": bar, "verdict": "met" if met else "missed", "value": value})
    return rows


def _masks(found: dict[str, Any]) -> Verdict:
    masks = found.get("masks", {}).get("masks")
    if masks is None:
        return None
    different = len(masks["different"])
    return not different, f"{masks['equal bit for bit']} equal, {different} different"


def _step_rows(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The measured steps of all models, with their names."""
    for model in _MODELS:
        for row in found.get(f"steps-{model}", {}).get("runs", []):
            graphs = "graphs" if row["graphs"] else "plain"
            yield f"{model} {row['precision']} {row['num_bags']} bags {graphs}", row
    for row in found.get("baselines", {}).get("runs", []):
        yield row["model"], row


def _waits(found: dict[str, Any]) -> Verdict:
    rows = dict(_step_rows(found))
    if not all(any(name.startswith(model) for name in rows) for model in _MODELS):
        return None
    more = {
        name: row["waits"] for name, row in rows.items() if sum(row["waits"].values()) > row["stated_waits"]
    }
    return not more, f"{len(rows) - len(more)} steps as stated" + (f", more waits in {more}" if more else "")


def _abmil(found: dict[str, Any]) -> Verdict:
    for row in found.get("loading", {}).get("trained", []):
        if row["source"] == "cache=device" and row["graphs"]:
            return row["bags_per_s"] >= ABMIL_BAGS_PER_S, f"{row['bags_per_s']:,.0f} bags/s"
    return None


def _transmil(found: dict[str, Any]) -> Verdict:
    part = found.get("steps-transmil", {})
    ours = [row["us"] for row in part.get("runs", []) if row["precision"] == "bf16" and row["num_bags"] == 1]
    naive = {row["precision"]: row["us"] for row in part.get("naive", [])}
    if not ours or "float32" not in naive:
        return None
    times = {precision: us / min(ours) for precision, us in naive.items()}
    value = ", ".join(f"{ratio:.1f} x in {precision}" for precision, ratio in times.items())
    return times["float32"] >= TRANSMIL_TIMES, value


def _read(found: dict[str, Any]) -> Verdict:
    for row in found.get("loading", {}).get("read", []):
        if row["source"] == "shards in the page cache":
            return row["bags_per_s"] >= READ_BAGS_PER_S, f"{row['bags_per_s']:,.0f} bags/s"
    return None


_BARS: dict[str, Callable[[dict[str, Any]], Verdict]] = {
    "masks are the same bits on CPU and GPU": _masks,
    "no step waits more often than is stated": _waits,
    f"AB-MIL by graphs, bf16, 9,000 x 1,024, cache=device: {ABMIL_BAGS_PER_S:,.0f} bags/s": _abmil,
    f"TransMIL in bf16: {TRANSMIL_TIMES:g} x the naive step in float32": _transmil,
    f"reading ahead from the page cache: {READ_BAGS_PER_S:,.0f} bags/s": _read,
}
