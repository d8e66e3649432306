#!/usr/bin/env python3
"""Seconds of training until the same AUC, by way of feeding the bags.

    python benchmarks/time_to_auc.py
    python benchmarks/time_to_auc.py --data digits-c16 --networks abmil --seeds 1
    python benchmarks/time_to_auc.py --data planted --device cuda
    python benchmarks/time_to_auc.py --quick

AB-MIL and MHIM (AB-MIL) train on digits-c16 and on bags of CAMELYON16's sizes with a planted signal, with one
bag per step as the authors do, with several, with samples of each bag, in bf16, and (AB-MIL) on packs. After
each epoch the held-out third of the cases is predicted, whole bag by whole bag. The target is 99 % of the
best AUC that one bag per step reached on the same data with the same network and seed. A row's seconds are
those of the training steps, loading included and prediction left out, up to the first epoch at the target;
MHIM's include its whole first stage, which is the AB-MIL of the same setting and seed. Seconds of the
processor count all threads and are what the ratios are of; those of the clock on the wall depend on what
else the machine does. With a GPU it is the other way round: the ratios are of seconds on the wall, and each
way trains an epoch unmeasured at first, for what is compiled once.

Every run of a setting with a seed is a file in the folder, so a killed benchmark continues where it was.
Settings take turns within a seed. A run ends after its epochs, or before if its AUC is 1.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import planted_bags
from benchmarks.auc_runs import DATA, NETWORKS, ONE, PACKS, QUICK, SETTINGS, Data, Run, runs
from benchmarks.auc_table import REACHED, best_auc, summary, table
from benchmarks.packs import PackTrainer
from benchmarks.processor import cpu_name
from data_prep.digits import build, ensure
from mhimdist import files
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split, k_folds
from mhimdist.models import BagModel
from mhimdist.training import denormals
from mhimdist.training.evaluation import predict
from mhimdist.training.network import network_for
from mhimdist.training.trainer import Trainer

CLOCKS = {"processor_s": "of the processor", "wall_s": "on the wall"}


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
    network = network_for(run.config, bags, split).to(run.config.device)
    packed, best, weights = PackTrainer(run.config, network, bags, run.spec.packing), -1.0, {}
    rows_N = bags.rows_of(split.train)
    for epoch in range(run.config.epochs):
        with clock, denormals.flushed():
            packed.train_epoch(rows_N, epoch)
            if run.config.device == "cuda":
                torch.cuda.synchronize()
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
        self._warm: set[tuple[str, str, str]] = set()

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
            first_run = Run(run.data, "abmil", run.setting, run.seed, run.config.first_stage(), run.spec)
            stage = {name: self.measure(first_run)["curve"][-1][name] for name in stage}
            first = network_for(first_run.config, bags, split)
            first.load_state_dict(load_file(self.folder / f"{first_run.name}.safetensors"))
        if run.config.device == "cuda" and (way := (run.data, run.network, run.setting)) not in self._warm:
            self._warm.add(way)
            trained(replace(run, config=run.config.override({"epochs": 1})), bags, split, first)
        curve, network = trained(run, bags, split, first)
        measured = {
            "data": run.data,
            "network": run.network,
            "setting": run.setting,
            "seed": run.seed,
            "bags": [len(split.train), len(split.validation)],
            "clock": "wall_s" if run.config.device == "cuda" else "processor_s",
            "first_stage": stage,
            "curve": curve,
            "load": round(os.getloadavg()[0], 1),
            "cpu": cpu_name(),
            "gpu": torch.cuda.get_device_name() if run.config.device == "cuda" else None,
        }
        files.write_bytes(self.folder / f"{run.name}.safetensors", save(network.state_dict()))
        files.write_text(self.folder / f"{run.name}.json", json.dumps(measured))
        return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3, help="of split and training (default: 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
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
        options.device,
    )
    measured = []
    for number, run in enumerate(wanted, 1):
        found = bench.found(run) if options.only_table else bench.measure(run)
        if found is None:
            continue
        measured.append(found)
        title = f"{run.data}, {NETWORKS[run.network]}, {run.setting}, seed {run.seed}"
        seconds, epochs = found["curve"][-1][found["clock"]], len(found["curve"])
        print(
            f"[{number}/{len(wanted)}] {title}: best AUC {best_auc(found):.3f} in {epochs} epochs, "
            f"{seconds:.1f} s {CLOCKS[found['clock']]}",
            file=sys.stderr,
            flush=True,
        )
    rows = summary(measured)
    if options.json:
        machine = {"cpu": cpu_name(), "threads": options.threads, "load": round(os.getloadavg()[0], 1)}
        print(json.dumps(machine | {"rows": rows, "runs": measured}))
        return
    gpu = f"{torch.cuda.get_device_name()}, " if options.device == "cuda" else ""
    print(
        f"{gpu}{cpu_name()}, {options.threads} thread(s); the target: {REACHED:.0%} of the best AUC of {ONE}"
    )
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
