"""Paired tests between the feature sets that a sweep chose among, on the test slides of its final runs."""

from collections.abc import Sequence
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
    try:
        entries = read_entries(folder)
        chosen = [_entry_of(entries, config) for config in first_of.values()]
        if len(chosen) < 2:
            return [f"All completed trials read {configs[0].features}: no other features to compare with."]
        comparison = compare_entries(chosen)
    except ComparisonError as error:
        return [f"The feature sets are not compared: {error}"]
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
