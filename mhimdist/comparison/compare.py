"""Compare finished runs on the same test slides: paired tests, settings that differ, a sentence to quote."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mhimdist import files, terminal
from mhimdist.comparison.entries import Entry, read_entries
from mhimdist.comparison.measures import Measured, measure_tests
from mhimdist.comparison.options import ComparisonJob
from mhimdist.comparison.pairs import Outcome, on_the_same_slides, paired_tests
from mhimdist.comparison.verdict import Pair, PairedComparison
from mhimdist.config.protocols import Protocol
from mhimdist.errors import ComparisonError, ConfigError
from mhimdist.statistics.paired import holm


def compare(
    *runs: str | Path,
    common: bool = False,
    against: str | None = None,
    protocol: Protocol | None = None,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> PairedComparison:
    """Compare finished runs on the same test slides, with paired tests.

    The unit is the case. Figures are means over networks (folds x seeds), as in the tables of a
    cross-validation. Scores of different networks are never pooled: they have no common scale.

    Args:
        *runs: folders of cross-validations, sweeps (their final runs), folds or predictions; one that holds
            several configurations stands for all of them, and `folder::name` for one.
        common: where test slides or data sets differ, compare the slides that all of them tested.
        against: compare all others with the configuration of this name; by default all pairs are compared.
        protocol: the protocol to compare if a folder holds several; by default nested or
            strict, the first that it has.
        level: confidence level of intervals and of the verdict, in (0, 1).
        num_resamples: resamples of the bootstrap over cases.
        seed: seed of the resamples.

    Raises:
        ComparisonError: a folder holds nothing that was tested, there is nothing to compare, or protocols,
            classes, labels, data sets or test slides differ.
        ConfigError: an option is out of its range.

    Example:
        >>> comparison = mh.compare("runs/train_c16")  # doctest: +SKIP
        >>> print(comparison.sentences[0])  # doctest: +SKIP
    """
    if not 0 < level < 1 or num_resamples < 100:
        raise ConfigError(
            f"expected a level in (0, 1) and at least 100 resamples, got {level} and {num_resamples}"
        )
    found = [entry for run in runs for entry in _of_protocol(read_entries(run), protocol, run)]
    return compare_entries(
        found, common=common, against=against, level=level, num_resamples=num_resamples, seed=seed
    )


def compare_entries(
    found: Sequence[Entry],
    *,
    common: bool = False,
    against: str | None = None,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> PairedComparison:
    """Compare configurations that are already read; see `compare`.

    Args:
        found: the configurations, all of one protocol.
        common, against, level, num_resamples, seed: as in `compare`.

    Raises:
        ComparisonError: as in `compare`.
    """
    named = _distinct(found)
    if len(named) < 2:
        names = ", ".join(entry.name for entry in named) or "none"
        raise ComparisonError(f"expected at least two configurations to compare, got {names}")
    entries, notes = on_the_same_slides(named, common=common)
    pairs = [
        Pair(one, two, _tests(one, two, level=level, num_resamples=num_resamples, seed=seed))
        for one, two in _pairs(entries, against)
    ]
    for entry in entries:
        notes += [f"{entry.name}: {note}" for note in entry.notes]
    return PairedComparison(entries, _adjusted(pairs), notes, level)


def run_comparison(job: ComparisonJob) -> PairedComparison:
    """Compare, print the tables, and write comparison.md and comparison.json if a folder is named.

    Args:
        job: what to compare, and how.

    Raises:
        ComparisonError, ConfigError: see `compare`.
        DiskFullError: the files do not fit on the disk.
    """
    comparison = compare(*job.runs, **job.model_dump(exclude={"runs", "out"}))
    console = terminal.console()
    for grid in comparison.grids():
        grid.print(console)
    for text in (*comparison.warnings, *comparison.sentences):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if job.out is not None:
        job.out.mkdir(parents=True, exist_ok=True)
        files.write_text(job.out / "comparison.md", comparison.markdown())
        files.write_text(job.out / "comparison.json", comparison.json())
        console.print(
            f"comparison: {job.out}/comparison.md, .json", markup=False, highlight=False, soft_wrap=True
        )
    return comparison


def _tests(one: Entry, two: Entry, *, level: float, num_resamples: int, seed: int) -> list[Outcome]:
    """The tests of a pair: of classes without an order those of AUC and accuracy, else the task's metrics."""
    if (task := one.task) is None:
        return paired_tests(one, two, level=level, num_resamples=num_resamples, seed=seed)
    sides = [
        [
            Measured(
                network.seed,
                network.fold,
                network.keys,
                (network.task or task).weighed(network.judged, network.fitted),
                num_train=network.num_train,
            )
            for network in entry.networks
        ]
        for entry in (one, two)
    ]
    first, second = sides
    return measure_tests(first, second, task.headings, level=level, num_resamples=num_resamples, seed=seed)


def _of_protocol(entries: list[Entry], protocol: str | None, run: str | Path) -> list[Entry]:
    """The configurations of a folder under one protocol."""
    found = list(dict.fromkeys(entry.protocol for entry in entries))
    if protocol is None:
        # Under nested is what a search has chosen, and under the others what it began with.
        protocol = next((each for each in ("nested", "strict") if each in found), found[0])
    kept = [entry for entry in entries if entry.protocol == protocol]
    if not kept:
        raise ComparisonError(f"{run} holds no runs of the {protocol} protocol, but of {', '.join(found)}")
    return kept


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    """Configurations of one name get that of their folder as well, and a number if that is not enough."""
    names = [entry.name for entry in entries]
    longer = [
        f"{entry.name} of {entry.folder.name}" if names.count(entry.name) > 1 else entry.name
        for entry in entries
    ]
    return [
        replace(entry, name=f"{name} ({longer[: i + 1].count(name)})" if longer.count(name) > 1 else name)
        for i, (entry, name) in enumerate(zip(entries, longer, strict=True))
    ]


def _pairs(entries: Sequence[Entry], against: str | None) -> list[tuple[Entry, Entry]]:
    if against is None:
        return list(itertools.combinations(entries, 2))
    base = next((entry for entry in entries if entry.name == against), None)
    if base is None:
        names = ", ".join(entry.name for entry in entries)
        raise ComparisonError(f"against: expected one of {names}, got {against!r}")
    return [(entry, base) for entry in entries if entry is not base]


def _adjusted(pairs: list[Pair]) -> list[Pair]:
    """The pairs with Holm's p-values, each test over all pairs; one pair needs none."""
    if len(pairs) < 2:
        return pairs
    columns: list[list[Outcome]] = []
    for outcomes in zip(*(pair.outcomes for pair in pairs), strict=True):
        adjusted = holm([each.tested.p if each.tested else None for each in outcomes])
        columns.append([replace(each, p_adjusted=p) for each, p in zip(outcomes, adjusted, strict=True)])
    return [
        replace(pair, outcomes=list(row)) for pair, row in zip(pairs, zip(*columns, strict=True), strict=True)
    ]
