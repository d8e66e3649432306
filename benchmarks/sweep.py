"""A sweep of the space in `jobs/tune_c16.py` against a plain Optuna loop over the same space.

The loop is what you would write without this package: Optuna's TPE with the same settings, trial after trial
in one process with one compute thread per core, every trial trained to its end. Its trials share one first
stage, as the sweep's do. Epochs are chosen so that a trial of the loop takes at least `--min-trial-s`.

    python benchmarks/sweep.py --json
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import optuna
import ray
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from data_prep.digits import ensure
from jobs.tune_c16 import BASE, space
from mhimdist.config.train import TrainConfig
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split
from mhimdist.files import home
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.search.storage import read, sqlite_url
from mhimdist.sweep.run import run_sweep
from mhimdist.training.first_stage import first_stage, open_trainer


def plain_loop(
    config: TrainConfig, bags: BagShards, split: Split, cache: Path, num_trials: int, num_threads: int
) -> tuple[float, list[float], list[float]]:
    """Seconds of the loop, and values and seconds of its trials; the first trial is the preset.

    Args:
        config: the preset.
        bags, split: as in `open_trainer`.
        cache: of first-stage networks.
        num_trials: of the loop.
        num_threads: compute threads.
    """
    torch.set_num_threads(num_threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seconds: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        begun, changes = time.perf_counter(), {}
        if trial.number:
            collected = Space(trial)
            space(collected)
            changes = collected.changes
        trainer = open_trainer(config.override(changes), bags, split, None, cache)
        for _ in trainer.epochs():
            pass
        seconds.append(time.perf_counter() - begun)
        return trainer.best.student_validation_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, group=True, n_startup_trials=8)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        begun = time.perf_counter()
        first_stage(config, bags, split, cache)
        study.optimize(objective, n_trials=num_trials)
    return time.perf_counter() - begun, [trial.value for trial in study.trials], seconds


def epochs_for(
    config: TrainConfig, bags: BagShards, split: Split, cache: Path, num_threads: int, min_trial_s: float
) -> int:
    """Epochs of a run that takes at least `min_trial_s` alone, whatever a trial changes in the preset.

    Args:
        config, bags, split, cache, num_threads: as in `plain_loop`.
        min_trial_s: seconds.
    """
    torch.set_num_threads(num_threads)
    trainer = open_trainer(config.override({"epochs": 4}), bags, split, None, cache)
    _, *timed = (record.epoch_s for record in trainer.epochs())
    # Half as many again: a trial that masks more than the preset, or differently, is up to a quarter faster.
    return max(8, int(1.5 * min_trial_s / min(timed)) + 1)


def measure(num_trials: int, min_trial_s: float, num_cpus: int, epochs: int | None) -> dict[str, object]:
    """Run one loop and one sweep, each with its own caches.

    Args:
        num_trials: of each.
        min_trial_s: see `epochs_for`.
        num_cpus: cores.
        epochs: of a trial; None: as `epochs_for` says.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = ensure("digits-c16", home())
        bags = BagShards(data)
        options = Sweep(home=folder, name="benchmark", num_trials=num_trials, final_seeds=1, train=BASE)
        (split,) = options.splits(bags)
        if epochs is None:
            epochs = epochs_for(BASE, bags, split, folder / "probe", num_cpus, min_trial_s)
        config = BASE.override({"epochs": epochs})
        loop_s, loop_values, seconds = plain_loop(config, bags, split, folder / "loop", num_trials, num_cpus)
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
        try:
            sweep = options.model_copy(update={"train": config})
            found = run_sweep(sweep, space, data=data)
        finally:
            ray.shutdown()
        # The sweep without its final runs, which the loop does not have: calibration, first stage, trials.
        sweep_s = json.loads((found / "result.json").read_text())["sweep_s"]
        trials = read(sqlite_url(found / "study.db"), "benchmark")
        complete = [trial.values[0] for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
        return {
            "time_ratio": sweep_s / loop_s,
            "sweep_s": sweep_s,
            "loop_s": loop_s,
            "num_trials": num_trials,
            "num_cpus": num_cpus,
            "epochs": epochs,
            "shortest_loop_trial_s": min(seconds),
            "is_long_enough": min(seconds) >= min_trial_s,
            "median_loop_trial_s": statistics.median(seconds),
            "num_complete": len(complete),
            "num_pruned": sum(trial.state == optuna.trial.TrialState.PRUNED for trial in trials),
            "best_validation_score": max(complete),
            "preset_validation_auc": loop_values[0],
            "loop_best_validation_score": max(loop_values),
            # Against the loop's preset: the sweep's own is among the trials that its best is chosen from.
            "is_not_below_preset": max(complete) >= loop_values[0],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=24, help="trials of each (default: %(default)s)")
    parser.add_argument(
        "--min-trial-s",
        type=float,
        default=20.0,
        help="least seconds of a trial alone (default: %(default)g)",
    )
    parser.add_argument("--epochs", type=int, help="of a trial (default: as many as take --min-trial-s)")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="cores (default: all)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    options = parser.parse_args()
    found = measure(options.trials, options.min_trial_s, options.cpus, options.epochs)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:>26} {value:.3f}" if isinstance(value, float) else f"{name:>26} {value}")


if __name__ == "__main__":
    main()
