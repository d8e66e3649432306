#!/usr/bin/env python3
"""Seconds of training until the same AUC, by way of feeding the bags.

    python benchmarks/time_to_auc.py
    python benchmarks/time_to_auc.py --data digits-c16 --networks abmil --seeds 1
    python benchmarks/time_to_auc.py --quick

AB-MIL and MHIM (AB-MIL) train on digits-c16 and on bags of CAMELYON16's sizes with a planted signal, with one
bag per step as the authors do, with several, with samples of each bag, in bf16, and (AB-MIL) on packs. After
each epoch the held-out third of the cases is predicted, whole bag by whole bag. The target is 99 % of the best
AUC that one bag per step reached on the same data with the same network and seed. A row's seconds are those
of the training steps, loading included and prediction left out, up to the first epoch that is at the target;
MHIM's include its whole first stage, which is the AB-MIL of the same setting and seed. Seconds of the
processor count all threads and are what the ratios are of; those of the clock on the wall depend on what else
the machine does.

Every run of a setting with a seed is a file in the folder, so a killed benchmark continues where it was.
Settings take turns within a seed. A run ends after its epochs, or before if its AUC is 1.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import planted_bags
from benchmarks.packs import Packing, PackTrainer
from benchmarks.processor import cpu_name
from data_prep.digits import build, ensure
from mhimdist import files
from mhimdist.config.presets import digits_preset
from mhimdist.config.train import TrainConfig
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split, k_folds
from mhimdist.models import BagModel
from mhimdist.training import denormals
from mhimdist.training.evaluation import predict
from mhimdist.training.network import network_for
from mhimdist.training.trainer import Trainer

ONE, PACKS = "one bag a step", "packs"
NETWORKS = {"abmil": "AB-MIL", "mhim": "MHIM (AB-MIL)"}
REACHED = 0.99
"""Share of the best AUC of one bag per step that is the target."""


@dataclass(frozen=True)
class Data:
    """A data set of the benchmark, and what belongs to its sizes.

    Attributes:
        bags_per_step: of the settings with several bags per step.
        sample: instances of a sample of a bag.
        packing: of the packs.
        epochs: of each run.
        num_bags: to build; None builds all.
        scale: of the sizes relative to the data set's usual ones.
        features: width of planted features.
        strength: of the planted signal, see `planted_bags.build`.
    """

    bags_per_step: int
    sample: int
    packing: Packing
    epochs: int
    num_bags: int | None = None
    scale: float = 1.0
    features: int = 512
    strength: float = 1.5


DATA = {
    # The digits' bags have 1/20 of a slide's size, so their packs do, too.
    "digits-c16": Data(8, 128, Packing(length=120, smallest=6), epochs=25),
    "planted": Data(4, 2048, Packing(), epochs=10, num_bags=48),
}
QUICK = {
    "digits-c16": Data(4, 8, Packing(length=16, smallest=2), epochs=2, num_bags=80, scale=0.02),
    "planted": Data(4, 32, Packing(length=64, smallest=8), epochs=2, num_bags=12, scale=0.01, features=16),
}
SETTINGS = (
    ONE,
    "several, rate as for one",
    "several, rate by sqrt",
    "several, rate linear",
    "samples",
    "samples, several, rate by sqrt",
    "one bag a step, bf16",
    PACKS,
)


def changes(setting: str, data: Data) -> dict[str, Any]:
    """What a setting changes in the configuration."""
    rules = {"several, rate as for one": "none", "several, rate linear": "linear"}
    found: dict[str, Any] = {}
    if "several" in setting or setting == PACKS:
        found |= {"bags_per_step": data.bags_per_step, "optimizer.rate_rule": rules.get(setting, "sqrt")}
    if "samples" in setting:
        found["instances_per_bag"] = data.sample
    if "bf16" in setting:
        found["precision"] = "bf16"
    return found


@dataclass(frozen=True)
class Run:
    """One run of the benchmark.

    Attributes:
        data: a key of `DATA`.
        network: a key of `NETWORKS`.
        setting: one of `SETTINGS`.
        seed: of the split and of the training.
        config: the whole configuration.
        spec: of the data.
    """

    data: str
    network: str
    setting: str
    seed: int
    config: TrainConfig
    spec: Data

    @property
    def name(self) -> str:
        """The run's file, which another configuration or another build of the data does not share."""
        parts = [self.config.recipe(), asdict(self.spec), self.setting, self.network]
        digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=6).hexdigest()
        words = "-".join(self.setting.replace(",", "").split())
        return f"{self.data}--{self.network}--{words}--seed-{self.seed}--{digest}"


def runs(data: Mapping[str, Data], networks: Sequence[str], settings: Sequence[str], seeds: int) -> list[Run]:
    """All runs in the order in which they take turns: a first stage comes before what it teaches."""
    found = []
    for seed in range(seeds):
        for name, spec in data.items():
            base = digits_preset("c16", "abmil").override({"device": "cpu", "precision": "float32"})
            base = base.override({"epochs": spec.epochs, "seed": seed})
            for setting in settings:
                config = base.override(changes(setting, spec))
                for network in networks:
                    if network == "abmil":
                        found.append(Run(name, network, setting, seed, config.first_stage(), spec))
                    elif setting != PACKS:
                        found.append(Run(name, network, setting, seed, config, spec))
    return found


class Clock:
    """Adds up seconds while it runs.

    Attributes:
        processor_s: of all threads of this process.
        wall_s: of the clock on the wall.
    """

    def __init__(self) -> None:
        self.processor_s = self.wall_s = 0.0

    def __enter__(self) -> None:
        self._started = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.processor_s += time.process_time() - self._started[0]
        self.wall_s += time.perf_counter() - self._started[1]

    def after(self, auc: float) -> dict[str, float]:
        """An epoch of a curve: its AUC and the seconds up to its end."""
        return {"auc": auc, "processor_s": round(self.processor_s, 4), "wall_s": round(self.wall_s, 4)}


class ClockedTrainer(Trainer):
    """A trainer whose clock runs during the steps alone."""

    clock: Clock

    def _take_steps(self, epoch: int) -> None:
        with self.clock:
            super()._take_steps(epoch)
            self.train_step.check(wait=True)


def trained(run: Run, bags: BagShards, split: Split, first: BagModel | None) -> tuple[list, BagModel]:
    """Train a run; returns its curve and the network of its best epoch."""
    clock, curve = Clock(), []
    if run.setting != PACKS:
        trainer = ClockedTrainer(run.config, bags, split, pretrained=first)
        trainer.clock = clock
        for record in trainer.epochs():
            curve.append(clock.after(record.student_validation_score or 0.0))
            if record.student_validation_score == 1:
                break
        return curve, trainer.best_student()
    network = network_for(run.config, bags, split)
    packed, best, weights = PackTrainer(run.config, network, bags, run.spec.packing), -1.0, {}
    rows_N = bags.rows_of(split.train)
    for epoch in range(run.config.epochs):
        with clock, denormals.flushed():
            packed.train_epoch(rows_N, epoch)
        auc = predict(packed.write_to(network), bags, split.validation).score or 0.0
        curve.append(clock.after(auc))
        if auc > best:
            best = auc
            weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if auc == 1:
            break
    network.load_state_dict(weights)
    return curve, network


class Bench:
    """Runs what is missing, and reads what is there."""

    def __init__(self, folder: Path) -> None:
        """Keep runs and built data in a folder."""
        self.folder = folder
        self.bags = cache(self._open)

    def _open(self, name: str, spec: Data) -> BagShards:
        """A data set, every bag of which has been read and compared with its checksum once."""
        if name == "digits-c16" and spec.num_bags is None:
            bags = BagShards(ensure(name, files.home()))
        else:
            words = name, spec.num_bags, f"{spec.scale:g}", spec.features, f"{spec.strength:g}"
            folder = self.folder / "-".join(map(str, words))
            if not folder.exists() and name == "planted":
                planted_bags.build(
                    folder,
                    bags=spec.num_bags,
                    features=spec.features,
                    scale=spec.scale,
                    strength=spec.strength,
                )
            elif not folder.exists():
                build(name, folder, scale=spec.scale / 20, bags=spec.num_bags)
            bags = BagShards(folder)
        for row in range(len(bags)):
            bags.load([row])
        return bags

    def found(self, run: Run) -> dict[str, Any] | None:
        """What a run measured, if it has ended."""
        path = self.folder / f"{run.name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def measure(self, run: Run) -> dict[str, Any]:
        """Run it, unless it has ended before; returns what it measured."""
        if (found := self.found(run)) is not None:
            return found
        bags = self.bags(run.data, run.spec)
        split = k_folds(
            bags.keys,
            bags.cases,
            bags.labels_N,
            num_folds=3,
            validation_share=0,
            selects_on_test=True,
            seed=run.seed,
        )[0]
        first, stage = None, {"processor_s": 0.0, "wall_s": 0.0}
        if run.network == "mhim":
            first_run = Run(
                run.data, "abmil", run.setting, run.seed, run.config.first_stage(), run.spec
            )
            stage = {name: self.measure(first_run)["curve"][-1][name] for name in stage}
            first = network_for(first_run.config, bags, split)
            first.load_state_dict(load_file(self.folder / f"{first_run.name}.safetensors"))
        curve, network = trained(run, bags, split, first)
        measured = {
            "data": run.data,
            "network": run.network,
            "setting": run.setting,
            "seed": run.seed,
            "bags": [len(split.train), len(split.validation)],
            "first_stage": stage,
            "curve": curve,
            "load": round(os.getloadavg()[0], 1),
            "cpu": cpu_name(),
        }
        files.write_bytes(self.folder / f"{run.name}.safetensors", save(network.state_dict()))
        files.write_text(self.folder / f"{run.name}.json", json.dumps(measured))
        return measured


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
    times, ratios = [], []
    for mine, one in pairs:
        target = REACHED * best_auc(one)
        own, theirs = reached(mine, target), reached(one, target)
        if own is not None and theirs is not None:
            times.append(own)
            ratios.append(own["processor_s"] / theirs["processor_s"])

    def median(name: str) -> float | None:
        return round(statistics.median(each[name] for each in times), 2) if times else None

    return {
        "seeds": len(pairs),
        "reached": len(times),
        "best_auc": round(statistics.mean(best_auc(mine) for mine, _ in pairs), 4),
        "epochs": median("epochs"),
        "processor_s": median("processor_s"),
        "processor_s_of_each": sorted(round(each["processor_s"], 2) for each in times),
        "wall_s": median("wall_s"),
        "ratio": round(statistics.median(ratios), 2) if ratios else None,
        "processor_s_an_epoch": round(
            statistics.median(mine["curve"][-1]["processor_s"] / len(mine["curve"]) for mine, _ in pairs), 3
        ),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows in Markdown, a table per data set and network."""
    seen = None
    for row in rows:
        if seen != (seen := (row["data"], row["network"])):
            yield f"\n{row['data']}, {NETWORKS[row['network']]}:\n"
            yield (
                "| setting | best AUC | at the target | epochs | processor, s (each seed) | wall, s | "
                "to one bag a step | processor, s an epoch |"
            )
            yield "|---|---:|---:|---:|---:|---:|---:|---:|"
        each = ", ".join(f"{value:.1f}" for value in row["processor_s_of_each"])
        cells = [
            row["setting"],
            f"{row['best_auc']:.3f}",
            f"{row['reached']} of {row['seeds']}",
            *(_cell(row[name], form) for name, form in (("epochs", "g"), ("processor_s", ".1f"))),
            *(_cell(row[name], form) for name, form in (("wall_s", ".1f"), ("ratio", ".2f"))),
            f"{row['processor_s_an_epoch']:.2f}",
        ]
        if each:
            cells[4] += f" ({each})"
        yield f"| {' | '.join(cells)} |"


def _cell(value: float | None, form: str) -> str:
    return "not reached" if value is None else format(value, form)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3, help="of split and training (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: 1)")
    parser.add_argument(
        "--folder", type=Path, help="of runs and data (default: benchmarks/time_to_auc in MHIMDIST_HOME)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny bags, two epochs, one seed")
    parser.add_argument("--only-table", action="store_true", help="run nothing: show what has ended")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    specs = QUICK if options.quick else DATA
    folder = options.folder or files.home() / "benchmarks" / "time_to_auc"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder)
    wanted = runs(
        {name: specs[name] for name in options.data},
        options.networks,
        [ONE, *(setting for setting in options.settings if setting != ONE)],
        1 if options.quick else options.seeds,
    )
    measured = []
    for number, run in enumerate(wanted, 1):
        found = bench.found(run) if options.only_table else bench.measure(run)
        if found is None:
            continue
        measured.append(found)
        title = f"{run.data}, {NETWORKS[run.network]}, {run.setting}, seed {run.seed}"
        last = found["curve"][-1]
        print(
            f"[{number}/{len(wanted)}] {title}: best AUC {best_auc(found):.3f} in {len(found['curve'])} epochs, "
            f"{last['processor_s']:.1f} s of the processor",
            file=sys.stderr,
            flush=True,
        )
    rows = summary(measured)
    if options.json:
        machine = {"cpu": cpu_name(), "threads": options.threads, "load": round(os.getloadavg()[0], 1)}
        print(json.dumps(machine | {"rows": rows, "runs": measured}))
        return
    print(f"{cpu_name()}, {options.threads} thread(s); the target: {REACHED:.0%} of the best AUC of {ONE}")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
