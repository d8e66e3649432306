"""Cross-validation: folds x seeds of one or several configurations, in parallel over the cluster.

A unit's folder is named by a hash of what the unit is made of, so that it is run once whatever asks for it, a
finished one is only read, and one that was cut off goes on after its last checkpoint when the same command is
given again.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

import ray
import torch
from rich import get_console

from mhimdist import atomic, cluster
from mhimdist.cluster import refuse_open_cluster
from mhimdist.command import Stopping
from mhimdist.config import TrainConfig
from mhimdist.cost import Cost, measure
from mhimdist.data.loader import BagShards, open_bags
from mhimdist.data.remote import Location, absolute
from mhimdist.data.sampler import warn_of_larger_bags
from mhimdist.data.splits import Split
from mhimdist.errors import CrossValidationError
from mhimdist.experiment import Candidate, CrossValidation, Execution, Experiment
from mhimdist.first_stage import made_with
from mhimdist.report import formats
from mhimdist.report.comparison import OUTSIDE_WEIGHTS, PAPER_WARNING, Comparison, Protocol, Result, Row
from mhimdist.run_units import ERROR_FILE, run_units, why_lost
from mhimdist.unit import Unit, has_outside_weights


def run_cross_validation(job: CrossValidation, *, data: Location) -> Comparison:
    """Run what a job was asked for and leave table.md, table.csv and table.json in its folder.

    Args:
        job: how to cross-validate what.
        data: folder of shards, on storage that every node sees, or its URL.

    Raises:
        CrossValidationError: units failed; the tables of the others are written and printed first.
    """
    comparison = compare(job, job.candidates, data=data)
    for suffix, text in (
        ("md", comparison.markdown()),
        ("csv", comparison.csv()),
        ("json", comparison.json()),
    ):
        atomic.write_text(job.folder / f"table.{suffix}", text)
    console = get_console()
    for grid in comparison.grids():
        grid.print(console)
    console.print(f"tables: {job.folder}/table.md, .csv, .json", highlight=False, soft_wrap=True)
    raise_failures(comparison, job.folder)
    return comparison


def raise_failures(
    comparison: Comparison, folder: Path, more: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Name the units that failed, after the tables of the others have been written.

    Args:
        comparison: whose units.
        folder: of the experiment.
        more: what else failed, by name.

    Raises:
        CrossValidationError: something failed.
    """
    failures = comparison.failures | dict(more)
    if failures:
        listing = "; ".join(f"{label}: {reason}" for label, reason in failures.items())
        raise CrossValidationError(
            f"{formats.count(len(failures), 'run')} of {comparison.name} failed, the same command "
            f"tries them again; whole reasons are in {folder}/units/*/{ERROR_FILE}. {listing}"
        )


def raise_failures_of(units: Mapping[str, Unit], outcomes: Mapping[str, Result | str], folder: Path) -> None:
    """Name the units of a set that failed.

    Args:
        units, outcomes: by digest.
        folder: holds the units' folders, under `units`.

    Raises:
        CrossValidationError: some failed.
    """
    failed = {units[digest].label: reason for digest, reason in outcomes.items() if isinstance(reason, str)}
    if failed:
        listing = "; ".join(f"{label}: {reason}" for label, reason in failed.items())
        raise CrossValidationError(
            f"{formats.count(len(failed), 'run')} failed, the same command tries them again; whole reasons "
            f"are in {folder}/units/*/{ERROR_FILE}. {listing}"
        )


def compare(experiment: Experiment, candidates: Sequence[Candidate], *, data: Location) -> Comparison:
    """Run every candidate on the same folds and seeds; identical units are run once.

    Args:
        experiment: folds, seeds, protocols and resources.
        candidates: what to compare, by name.
        data: folder of shards, on storage that every node sees, or its URL.
    """
    refuse_open_cluster(insecure=experiment.insecure)
    started, folder = time.monotonic(), experiment.folder
    bags = open_bags(data, candidates[0].config.loading)
    for limit in {candidate.config.max_instances for candidate in candidates}:
        warn_of_larger_bags(bags, limit)
    units: dict[str, Unit] = {}
    members: dict[tuple[str, Protocol], list[str]] = {}
    num_train: dict[Protocol, list[int]] = {}
    assert len({candidate.name for candidate in candidates}) == len(candidates), "rows are told apart by name"
    devices = [device_of_runs(experiment, candidate.config) for candidate in candidates]
    for protocol in experiment.protocols:
        for seed in experiment.seeds:
            splits = experiment.splits(bags, protocol, seed)
            num_train.setdefault(protocol, []).extend(len(split.train) for split in splits)
            for fold, split in enumerate(splits, 1):
                for candidate, device in zip(candidates, devices, strict=True):
                    if fold > (candidate.num_folds or fold):
                        continue
                    digest, unit = make_unit(candidate, split, fold, seed, protocol, bags, folder, device)
                    units.setdefault(digest, unit)
                    members.setdefault((candidate.name, protocol), []).append(digest)
                _save_split(split, folder / "splits" / f"{protocol}-seed-{seed}-fold-{fold}.json")
    atomic.write_text(folder / "options.json", experiment.model_dump_json(indent=1))
    found = {digest: left for digest, unit in units.items() if (left := unit.result()) is not None}
    _announce(experiment, bags, len(candidates), len(units), len(found))
    if any(has_outside_weights(candidate.config) for candidate in candidates):
        get_console().print(f"WARNING: {OUTSIDE_WEIGHTS}", style="bold", highlight=False)
    missing = {digest: unit for digest, unit in units.items() if digest not in found}
    outcomes: dict[str, Result | str] = {}
    outcomes.update(found)
    if missing:
        with _stoppable(experiment):
            outcomes.update(run_units(experiment, missing, absolute(data)))
    rows = []
    for (name, protocol), digests in members.items():
        results = [result for digest in digests if isinstance(result := outcomes[digest], Result)]
        failures = {units[d].label: reason for d in digests if isinstance(reason := outcomes[d], str)}
        candidate = next(candidate for candidate in candidates if candidate.name == name)
        note = "; ".join(
            filter(None, (OUTSIDE_WEIGHTS if has_outside_weights(candidate.config) else "", candidate.note))
        )
        rows.append(Row(name, protocol, results, len(digests), failures, note))
    return Comparison(
        name=experiment.name,
        dataset=bags.name,
        synthetic=bags.synthetic,
        num_bags=len(bags),
        num_cases=len(set(bags.cases)),
        num_folds=experiment.num_splits(bags),
        split_by=experiment.split_by(bags),
        seeds=experiment.seeds,
        rows=rows,
        wall_s=time.monotonic() - started,
        num_found=len(found),
        num_train={protocol: mean(each) for protocol, each in num_train.items()},
        validation_share=experiment.validation_share,
    )


@contextmanager
def _stoppable(experiment: Experiment) -> Iterator[None]:
    """Have a SIGTERM, as of `ray job stop`, end an experiment by a `PreemptedError`; Ray would abort it."""
    cluster.connect()  # which sets handlers of its own
    with Stopping(f"{experiment.name} was stopped; the same command goes on with it"):
        yield


def measure_costs(
    experiment: Experiment, configs: Mapping[str, TrainConfig], *, data: Location
) -> dict[str, Cost | str]:
    """What each configuration costs on the first fold: one after the other, each in a process of its own.

    One that cannot be measured gives the reason in place of its cost, and keeps no other from being measured.

    Args:
        experiment: data and resources.
        configs: what to measure, by name.
        data: folder of shards, on storage that every node sees, or its URL.
    """
    if not configs:
        return {}
    folder = experiment.folder / "costs"
    bags = open_bags(data, next(iter(configs.values())).loading)
    split = experiment.splits(bags, experiment.protocols[0], experiment.seeds[0])[0]
    folder.mkdir(parents=True, exist_ok=True)
    num_threads = max(1, int(experiment.cpus_per_run))
    costs: dict[str, Cost | str] = {}
    for name, config in configs.items():
        made_of = (
            made_with(config, device_of_runs(experiment, config)),
            split.digest(),
            bags.digest,
            num_threads,
        )
        file = folder / f"{_hash(made_of)}.json"
        if not file.exists():
            cluster.connect()
            share = cluster.share_of(experiment.cpus_per_run, experiment.gpus_per_run)
            # A process that has trained another network would hold that one's memory: an environment of its
            # own makes Ray start a new one.
            task = ray.remote(max_calls=1)(_measure).options(
                **share.options,
                runtime_env={"env_vars": {"MHIMDIST_MEASURED": file.stem}},
            )
            try:
                with _stoppable(experiment):
                    cost = ray.get(task.remote(config, split, absolute(data), num_threads))
            except ray.exceptions.RayError as error:
                cost = why_lost(error)
            if isinstance(cost, str):
                get_console().print(f"cost of {name}: FAILED {cost}", highlight=False, markup=False)
                costs[name] = cost
                continue
            atomic.write_text(file, json.dumps(asdict(cost), allow_nan=False))
            get_console().print(f"cost of {name}: {cost.train_s:.1f} s an epoch", highlight=False)
        costs[name] = Cost(**json.loads(file.read_text()))
    return costs


def _measure(config: TrainConfig, split: Split, data: Location, num_threads: int) -> Cost | str:
    try:
        return measure(config, open_bags(data, config.loading), split, num_threads)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def make_unit(
    candidate: Candidate,
    split: Split,
    fold: int,
    seed: int,
    protocol: Protocol,
    bags: BagShards,
    folder: Path,
    device: torch.device,
) -> tuple[str, Unit]:
    """The unit of a candidate on a fold with a seed, and the digest of all that it is made of.

    Args:
        candidate, split, fold, seed, protocol, bags: what the unit is of.
        folder: holds the units' folders, under `units`.
        device: that it will be trained on, see `device_of_runs`.
    """
    config = candidate.config.model_copy(update={"seed": seed})
    weights = config.teacher.weights
    if weights is not None:
        weights = Path(str(weights).replace("{fold}", str(fold)).replace("{seed}", str(seed)))
        teacher = config.teacher.model_copy(update={"weights": weights})
        config = config.model_copy(update={"teacher": teacher})
    made_of = (
        made_with(config, device),
        split.digest(),
        bags.digest,
        hashlib.blake2b(weights.read_bytes()).hexdigest() if weights is not None else None,
    )
    digest = _hash(made_of)
    label = f"{candidate.name}, {protocol}, seed {seed}, fold {fold}"
    return digest, Unit(label, config, split, fold, bags.digest, folder / "units" / digest)


def device_of_runs(execution: Execution, config: TrainConfig) -> torch.device:
    """The device that a run will be trained on, which need not be one that this process has."""
    if config.device != "auto":
        return torch.device(config.device)
    share = cluster.share_of(
        execution.cpus_per_run, execution.gpus_per_run if execution.workers == 1 else None
    )
    return torch.device("cuda" if share.gpus else "cpu")


def _hash(made_of: Any) -> str:
    text = json.dumps(made_of, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _save_split(split: Split, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    split.save(path)


def _announce(experiment: Experiment, bags: BagShards, num_rows: int, num_units: int, num_found: int) -> None:
    console = get_console()
    if "paper" in experiment.protocols:
        console.print(PAPER_WARNING, style="bold", highlight=False)
    console.print(
        f"[bold]{experiment.name}[/]: {formats.count(num_rows, 'configuration')} on {bags.name}, "
        f"{formats.count(num_units, 'run')}, {num_found} of them found finished; "
        f"results in {experiment.folder}",
        soft_wrap=True,
    )
