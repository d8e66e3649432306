"""Paired tests between the feature sets that a sweep chose among, on the test slides of its final runs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mhimdist import files
from mhimdist.comparison.compare import compare_entries
from mhimdist.comparison.entries import Entry, read_entries
from mhimdist.config.train import TrainConfig
from mhimdist.errors import ComparisonError


def told_apart(folder: Path, configs: Sequence[TrainConfig]) -> list[str]:
    """Compare the final runs of each feature set's best configuration; write comparison.md and .json.

    Args:
        folder: the sweep's folder.
        configs: the configurations that were trained again, the best first.

    Returns:
        A sentence per pair of feature sets; why there is none, if they cannot be compared.
    """
    first_of: dict[str | None, TrainConfig] = {}
    for config in configs:
        first_of.setdefault(config.features, config)
    if len(first_of) < 2:
        return [f"All completed trials read {configs[0].features}: no other features to compare with."]
    try:
        entries = read_entries(folder)
        return _compared(folder, (_entry_of(entries, config) for config in first_of.values()))
    except ComparisonError as error:
        return [f"The feature sets are not compared: {error}"]


def rows_told_apart(folder: Path, names: Sequence[str]) -> list[str]:
    """Compare rows of a table, one per feature set; write comparison.md and .json.

    Args:
        folder: holds table.json and the folds that it is made of.
        names: the rows.

    Returns:
        As `told_apart`; nothing without two rows.
    """
    if len(names) < 2:
        return []
    try:
        return _compared(folder, (each for each in read_entries(folder) if each.name in names))
    except ComparisonError as error:
        return [f"The feature sets are not compared: {error}"]


def _compared(folder: Path, entries: Iterable[Entry]) -> list[str]:
    comparison = compare_entries(list(entries))
    files.write_text(folder / "comparison.md", comparison.markdown())
    files.write_text(folder / "comparison.json", comparison.json())
    return list(comparison.sentences)


def _entry_of(entries: Sequence[Entry], config: TrainConfig) -> Entry:
    """The final runs of a configuration, whatever their seeds."""
    wanted = config.model_copy(update={"seed": 0}).digest()
    for entry in entries:
        network = entry.networks[0]
        if network.folder is None:
            continue
        text = (network.folder / "config.json").read_text(encoding="utf-8")
        if TrainConfig.model_validate_json(text).model_copy(update={"seed": 0}).digest() == wanted:
            return entry
    raise ComparisonError(f"no final runs of {config.title} are in {entries[0].folder}")
