"""Cross-validation: folds x seeds of one or several configurations, in parallel over the cluster.

The name of a fold's folder is a hash of everything the fold is made of, so the fold runs once, whichever
configuration asks for it. Finished folds are only read. The same command resumes an interrupted fold from
its last checkpoint.
"""

import itertools
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType

from mhimdist import files, terminal
from mhimdist.cluster.connect import refuse_open_cluster
from mhimdist.config.protocols import Protocol
from mhimdist.config.repeated import REPEAT_FILE, repeated
from mhimdist.cross_validation.folds import FoldSet, raise_failed
from mhimdist.cross_validation.options import Candidate, CrossValidation, Experiment
from mhimdist.data.opening import open_bags
from mhimdist.data.remote import Location, absolute, shown
from mhimdist.data.sampler import warn_of_larger_bags
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.data.sub_bags import SampleSize, SubBags
from mhimdist.distributed.fold_tasks import Outcome, run_folds, stoppable
from mhimdist.errors import ComparisonError, ReportError
from mhimdist.ops.draws import Draws
from mhimdist.report import formats
from mhimdist.report.comparison import PAPER_WARNING, Comparison, Row
from mhimdist.training.environment import environment
from mhimdist.training.model_card import read_trained, write_card
from mhimdist.training.requirements import check_runs, describe_left_out, describe_missing
from mhimdist.training.result import OUTSIDE_WEIGHTS, Result, note_on


def run_cross_validation(job: CrossValidation, *, data: Location) -> Comparison:
    """Run a cross-validation and write table.md, table.csv, table.json and report.html to its folder.

    Args:
        job: the configurations, and how to cross-validate them.
        data: folder of shards, on storage that every node sees, or its URL.

    Raises:
        CrossValidationError: folds failed; the tables of the others are written and printed first.
    """
    comparison = compare(job, job.candidates, data=data)
    write_tables(comparison, job.folder)
    print_report(comparison, job.folder)
    raise_failures(comparison, job.folder)
    return comparison


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Write table.md, table.csv and table.json, print the tables and say where they are.

    Args:
        comparison: the results.
        folder: the experiment's folder.
    """
    for suffix, text in (
        ("md", comparison.markdown()),
        ("csv", comparison.csv()),
        ("json", comparison.json()),
    ):
        files.write_text(folder / f"table.{suffix}", text)
    console = terminal.console()
    for grid in comparison.grids():
        grid.print(console)
    console.print(f"tables: {folder}/table.md, .csv, .json", markup=False, highlight=False, soft_wrap=True)


def print_report(comparison: Comparison, folder: Path) -> None:
    """Write the page about an experiment, unless all of its runs failed, and say where it is.

    Where it cannot be made, this says why and goes on: the tables are there, and failed runs must be named.

    Args:
        comparison: the results, whose tables are in the folder.
        folder: the experiment's folder.

    Raises:
        DiskFullError: the page does not fit on the disk.
    """
    if any(row.results for row in comparison.rows):
        from mhimdist.pages.write import write_report  # a second to import, for a page of half a second

        try:
            text = f"report: {write_report(folder)}"
        except (ComparisonError, ReportError) as error:
            text = f"no report: {error}"
        terminal.console().print(text, markup=False, highlight=False, soft_wrap=True)


def raise_failures(
    comparison: Comparison, folder: Path, more: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Raise for the folds that failed, after the tables of the others have been written.

    Args:
        comparison: holds the failures of its folds.
        folder: the experiment's folder.
        more: reasons of other failures, by name.

    Raises:
        CrossValidationError: at least one of them failed.
    """
    raise_failed(f" of {comparison.name}", comparison.failures | dict(more), folder / "folds")


def compare(experiment: Experiment, candidates: Sequence[Candidate], *, data: Location) -> Comparison:
    """Run every candidate on the same folds and seeds; identical folds run once.

    Args:
        experiment: folds, seeds, protocols and resources.
        candidates: the configurations to compare, each with another name.
        data: folder of shards, on storage that every node sees, or its URL.

    Raises:
        CrossValidationError: two candidates have the same name, or an earlier release wrote the folder.
        RunLockedError: another process drives this cross-validation.
        PreemptedError: a SIGTERM stopped it; every run is saved, and the same call resumes them.
    """
    refuse_open_cluster(insecure=experiment.insecure)
    started, folder = time.monotonic(), experiment.folder
    first = candidates[0].config
    bags = open_bags(data, first.loading, first.features, bag_of=experiment.bag_of)
    for size, limit in {(SampleSize.of(each.config), each.config.max_instances) for each in candidates}:
        warn_of_larger_bags(bags if size is None else SubBags(bags, size, Draws(0, 0)), limit)
    planned = FoldSet(experiment, candidates, folder / "folds")
    splits, lacking = _add_folds(planned, experiment, bags)
    check_runs(((fold.name, fold.config, fold.split) for fold in planned.missing().values()), bags)
    options = experiment.model_dump(mode="json") | {"data": shown(experiment.data)}  # a URL may be signed
    files.write_text(folder / "options.json", json.dumps(options, indent=1))
    if isinstance(experiment, CrossValidation):
        text = repeated(experiment, "cross-validate", shown={"data": shown(experiment.data)})
        files.write_text(folder / REPEAT_FILE, text)
    files.write_text(folder / "environment.json", json.dumps(environment(experiment.num_threads), indent=1))
    outcomes = planned.found()
    num_found = len(outcomes)
    _announce(experiment, bags, len(candidates), planned, num_found)
    if any(candidate.config.teacher.has_outside_weights for candidate in candidates):
        terminal.console().print(f"WARNING: {OUTSIDE_WEIGHTS}", style="bold", highlight=False)
    left_out = describe_left_out(bags, itertools.chain(*splits.values()))
    for text in filter(None, (describe_missing(lacking, bags.task.name), left_out)):
        terminal.console().print(f"WARNING: {text}", style="bold", highlight=False, markup=False)
    if missing := planned.missing():
        with experiment.driving(), stoppable(experiment) as stopping:
            outcomes |= run_folds(experiment, missing, absolute(data), stopping)
    if isinstance(experiment, CrossValidation):
        _write_card(planned, folder)
    return Comparison(
        name=experiment.name,
        dataset=bags.name,
        synthetic=bags.synthetic,
        num_bags=len(bags),
        num_cases=len(set(bags.cases)),
        num_folds=experiment.num_splits(bags),
        split_by=experiment.split_by(bags),
        seeds=experiment.seeds,
        rows=rows_of(planned, candidates, outcomes, bags),
        wall_s=time.monotonic() - started,
        num_found=num_found,
        num_train={protocol: mean(len(s.train) for s in each) for protocol, each in splits.items()},
        validation_share=experiment.validation_share,
        inner_folds=experiment.inner_folds,
    )


def _add_folds(
    planned: FoldSet, experiment: Experiment, bags: StoredBags
) -> tuple[dict[Protocol, list[Split]], dict[str, dict[str, list[str]]]]:
    """Add the folds of all protocols and seeds, and save their splits.

    Returns:
        The splits of each protocol, and the classes that sets of a fold lack, by the fold's name.
    """
    every: dict[Protocol, list[Split]] = {}
    lacking: dict[str, dict[str, list[str]]] = {}
    for protocol, seed in itertools.product(experiment.protocols, experiment.seeds):
        splits = experiment.splits(bags, protocol, seed)
        every.setdefault(protocol, []).extend(splits)
        for fold, split in enumerate(splits, 1):
            name = _run_text(fold, seed, experiment.seeds)
            name += f", {protocol}" if len(experiment.protocols) > 1 else ""
            inner = experiment.inner_splits(bags, split, seed) if protocol == "refit" else []
            if bags.task.of_classes:  # strata of targets are not judged
                lacking[name] = split.missing_classes(bags.keys, bags.labels_N, bags.classes)
                for number, each in enumerate(inner, 1):
                    found = each.missing_classes(bags.keys, bags.labels_N, bags.classes)
                    lacking[f"{name}, inner fold {number}"] = {k: v for k, v in found.items() if k != "test"}
            planned.add(split, fold, seed, protocol, bags, inner)
            _save_split(split, planned.folder.parent / "splits" / f"{protocol}-seed-{seed}-fold-{fold}.json")
    return every, lacking


def rows_of(
    planned: FoldSet, candidates: Sequence[Candidate], outcomes: Mapping[str, Outcome], bags: StoredBags
) -> list[Row]:
    """A table's row per configuration and protocol.

    Args:
        planned: the folds.
        candidates: their configurations.
        outcomes: the result of each fold, or the reason of its failure, by digest.
        bags: the data set.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    rows = []
    for (name, protocol), digests in planned.members.items():
        results = [result for digest in digests if isinstance(result := outcomes[digest], Result)]
        known = note_on(by_name[name].config, bags)
        seeds = {result.seed for result in results}
        lacking = {_run_text(each.fold, each.seed, seeds): each.missing_classes for each in results}
        task = results[0].meaning.name if results else bags.task.name
        note = "; ".join(filter(None, (known, by_name[name].note, describe_missing(lacking, task))))
        rows.append(Row(name, protocol, results, len(digests), planned.failures(outcomes, digests), note))
    return rows


def _run_text(fold: int, seed: int, seeds: Collection[int]) -> str:
    """A run among those of several folds and perhaps several seeds."""
    return f"fold {fold}, seed {seed}" if len(seeds) > 1 else f"fold {fold}"


def _write_card(planned: FoldSet, folder: Path) -> None:
    """Write the model card of the first configuration under the first protocol: the ensemble of its runs."""
    (name, protocol), digests = next(iter(planned.members.items()))
    finished = [fold.folder for digest in digests if (fold := planned.folds[digest]).is_finished]
    if finished:
        write_card(folder, [read_trained(each) for each in finished], f"{folder.name}, {name}, {protocol}")


def _save_split(split: Split, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    split.save(path)


def _announce(
    experiment: Experiment, bags: StoredBags, num_rows: int, planned: FoldSet, num_found: int
) -> None:
    console = terminal.console()
    inner = (
        f"; {formats.count(len(planned.inner), 'inner run')} choose for those of refit"
        if planned.inner
        else ""
    )
    if "paper" in experiment.protocols:
        console.print(PAPER_WARNING, style="bold", highlight=False)
    terminal.progress().print(
        f"{experiment.name}: {formats.count(num_rows, 'configuration')} on "
        f"{bags.name}, {formats.count(len(planned.folds), 'run')}, {num_found} of them finished "
        f"before{inner}; results in {experiment.folder}",
        soft_wrap=True,
    )
