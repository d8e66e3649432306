"""A result as lines for the terminal, and as Markdown for `benchmarks/RESULTS.md`."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu_check.bars import bars

_MODELS = {"steps-abmil": "AB-MIL", "steps-dsmil": "DSMIL", "steps-transmil": "TransMIL"}
_MOST_CHARACTERS = 300


def summary(result: dict[str, Any]) -> str:
    """What failed and what was left out, part by part, and the verdicts on the bars."""
    lines = [""]
    for name, part in result["parts"].items():
        lines.append(f"{name}: {part['status']}")
        for kind in ("failed", "left_out"):
            for what, why in part.get(kind, {}).items():
                lines.append(f"  {kind.replace('_', ' ')}: {what}: {_short(why)}")
    lines.append("")
    for row in bars(result):
        lines.append(f"{row['verdict']}: {row['bar']}" + (f": {row['value']}" if row["value"] else ""))
    lines.append("passed" if result.get("passed") else "NOT passed")
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The tables for `benchmarks/RESULTS.md`, headed by the card's name."""
    found = {name: part.get("found", {}) for name, part in result["parts"].items()}
    blocks = [_heading(result, found.get("environment", {})), _bars_table(result)]
    blocks += [_steps_table(found), _loading_table(found), _others_table(found), _costs_table(found)]
    statuses = [(name, part["status"], _problems(part)) for name, part in result["parts"].items()]
    blocks.append(_table(("part", "ended", "failed or left out"), statuses))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _heading(result: dict[str, Any], environment: dict[str, Any]) -> str:
    versions = environment.get("versions", {})
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    card = environment.get("card") or "a CPU, at sizes that say nothing about speed"
    if result["device"] == "cuda" and "card" not in environment:
        card = "a GPU that was not named"
    how = f"`make gpu-check` at commit {result['commit']}, in {result['wall_s']:.0f} s; {named}."
    return f"## On {card}: measured\n\n{how}"


def _bars_table(result: dict[str, Any]) -> str:
    rows = [(row["bar"], row["verdict"], row["value"]) for row in bars(result)]
    return _table(("bar", "verdict", "value"), rows)


def _steps_table(found: dict[str, Any]) -> str:
    """Steps of all models, each with how many times as fast as the naive step in float32 it is."""
    rows = []
    for part, model in _MODELS.items():
        naive = {row["precision"]: row for row in found.get(part, {}).get("naive", [])}
        for row in found.get(part, {}).get("runs", []):
            how = f"ours, {row['precision']}, {'graphs' if row['graphs'] else 'plain'}"
            rows.append(_step_row(model, how, row, naive.get("float32")))
        for precision, row in naive.items():
            rows.append(_step_row(model, f"naive, {precision}", {"num_bags": 1, **row}, naive.get("float32")))
    names = ("model", "step", "bags", "us", "us of the host", "bags/s", "naive float32 / this")
    return _table((*names, "launches", "waits", "peak MiB"), rows)


def _step_row(model: str, how: str, row: dict[str, Any], naive: dict[str, Any] | None) -> tuple[str, ...]:
    ratio = f"{row['bags_per_s'] / naive['bags_per_s']:.2f}" if naive else ""
    waits = f"{sum(row['waits'].values()):g}" if "waits" in row else ""
    counts = str(row["num_bags"]), f"{row['us']:.0f}", f"{row['host_us']:.0f}", f"{row['bags_per_s']:.0f}"
    launches = row.get("launches", "")
    return model, how, *counts, ratio, str(launches), waits, _plain(row.get("peak_mib"))


def _loading_table(found: dict[str, Any]) -> str:
    loading, rows = found.get("loading", {}), []
    trained = {(row["source"], row["graphs"]): row["bags_per_s"] for row in loading.get("trained", [])}
    for row in loading.get("read", []):
        with_steps = (_plain(trained.get((row["source"], graphs))) for graphs in (False, True))
        rows.append((row["source"], _plain(row["bags_per_s"]), *with_steps))
    names = ("fp16 bags to a bf16 step of AB-MIL, from", "bags/s", "trained, plain", "trained, graphs")
    return _table(names, rows)


def _others_table(found: dict[str, Any]) -> str:
    rows = [(row["model"], row) for row in found.get("baselines", {}).get("runs", [])]
    rows += [(f"AB-MIL {row['workers']}", row) for row in found.get("workers", {}).get("runs", [])]
    for row in found.get("compiled", {}).get("runs", []):
        compiled = "compiled" if row["compiled"] else "not compiled"
        rows.append((f"AB-MIL {compiled}, {'graphs' if row['graphs'] else 'plain'}", row))
    return _table(
        ("other steps in bf16, 1 bag", "us", "us of the host"),
        [(name, f"{row['us']:.0f}", f"{row['host_us']:.0f}") for name, row in rows],
    )


def _costs_table(found: dict[str, Any]) -> str:
    costs = found.get("environment", {}).get("costs", [])
    return _table(("cost", "measured"), [(row["what"], f"{row['value']:g} {row['unit']}") for row in costs])


def _problems(part: dict[str, Any]) -> str:
    found = {**part.get("failed", {}), **part.get("left_out", {})}
    return "; ".join(f"{what}: {_short(why, 100)}" for what, why in found.items()).replace("|", "/")


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""

    def lines() -> Iterator[Sequence[str]]:
        yield names
        yield ["---"] * len(names)
        yield from rows

    return "\n".join(f"| {' | '.join(line)} |" for line in lines()) if rows else ""


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _short(text: object, most: int = _MOST_CHARACTERS) -> str:
    """The end of a text, in one line: an error says last what it is about."""
    line = " ".join(str(text if isinstance(text, str) else json.dumps(text)).split())
    return line if len(line) <= most else f"... {line[-most:]}"
