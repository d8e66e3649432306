"""The costs in Table 2: seconds and memory of each candidate, measured on the cluster."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import ray

from mhimdist import files, terminal
from mhimdist.cluster.connect import connect, share_of
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.folds import device_of_runs, digest_of
from mhimdist.cross_validation.options import Experiment
from mhimdist.data.opening import open_bags, with_features
from mhimdist.data.remote import Location, absolute
from mhimdist.data.splits import Split
from mhimdist.data.stored import BagOf
from mhimdist.distributed.fold_tasks import stoppable, why_lost
from mhimdist.errors import MhimdistError
from mhimdist.training.cost import Cost, measure
from mhimdist.training.first_stage import made_with


def measure_costs(
    experiment: Experiment, configs: Mapping[str, TrainConfig], *, data: Location
) -> dict[str, Cost | str]:
    """Measure the cost of each configuration on the first fold, one after the other, each in a new process.

    If a configuration cannot be measured, the reason takes the place of its cost; the others are measured
    all the same.

    Args:
        experiment: data and resources.
        configs: the configurations to measure, by name.
        data: folder of shards, on storage that every node sees, or its URL.

    Returns:
        A cost, or a reason in a line, per name.

    Raises:
        PreemptedError: a SIGTERM stopped it; the same call measures the rest.
    """
    if not configs:
        return {}
    folder = experiment.folder / "costs"
    first = next(iter(configs.values()))
    bags = open_bags(data, first.loading, first.features, bag_of=experiment.bag_of)
    protocol, seed = experiment.protocols[0], experiment.seeds[0]
    split = experiment.splits(bags, protocol, seed)[0]
    if protocol == "refit":  # an inner run, which has a validation set, and is what refit has most of
        split = experiment.inner_splits(bags, split, seed)[0]
    folder.mkdir(parents=True, exist_ok=True)
    num_threads = max(1, int(experiment.cpus_per_run))
    costs: dict[str, Cost | str] = {}
    for name, config in configs.items():
        data_digest = with_features(bags, config.features).digest
        made_of = (
            made_with(config, device_of_runs(experiment, config)),
            split.digest(),
            data_digest,
            num_threads,
        )
        file = folder / f"{digest_of(made_of)}.json"
        found = _read(file)
        if found is None:
            connect()
            share = share_of(experiment.cpus_per_run, experiment.gpus_per_run)
            # A process that has trained another network still holds its memory. A runtime environment that
            # no other task has makes Ray start a new process.
            task = ray.remote(max_calls=1)(_measure).options(
                **share.options,
                runtime_env={"env_vars": {"MHIMDIST_MEASURED": file.stem}},
            )
            try:
                with stoppable(experiment):
                    of_bags = experiment.bag_of, data_digest
                    cost = ray.get(task.remote(config, split, absolute(data), num_threads, *of_bags))
            except ray.exceptions.RayError as error:
                cost = why_lost(error)
            if isinstance(cost, str):
                terminal.console().print(f"cost of {name}: FAILED {cost}", highlight=False, markup=False)
                costs[name] = cost
                continue
            files.write_text(file, json.dumps(asdict(cost), allow_nan=False))
            terminal.progress().print(f"cost of {name}: {cost.train_s:.1f} s per epoch", highlight=False)
            found = cost
        costs[name] = found
    return costs


def _read(file: Path) -> Cost | None:
    """An earlier measurement; None if there is none, or a damaged one."""
    try:
        return Cost(**files.json_object(file, MhimdistError))
    except (MhimdistError, TypeError):
        return None


def _measure(
    config: TrainConfig, split: Split, data: Location, num_threads: int, bag_of: BagOf, digest: str
) -> Cost | str:
    try:
        bags = open_bags(data, config.loading, config.features, bag_of=bag_of, digest=digest)
        return measure(config, bags, split, num_threads)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
