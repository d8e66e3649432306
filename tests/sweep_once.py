"""A sweep as a program, for tests that kill it: python sweep_once.py DATA HOME [OPTION ...].

With `--features uni`, it searches among the feature sets "uni" and "virchow2".
"""

import sys
from pathlib import Path

from mhimdist.config.presets import preset
from mhimdist.process import run
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.sweep.run import run_sweep

BASE = preset("c16", "abmil").override(
    {
        "model.hidden_dim": 16,
        "model.attention_dim": 8,
        "epochs": 4,
        "device": "cpu",
        "optimizer.learning_rate": 1e-3,
    }
)


def space(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2, log=True)
    s.uniform("loss.alpha", 0.01, 1.0, log=True)


def space_of_encoders(s: Space) -> None:
    s.choice("features", ["uni", "virchow2"])
    space(s)


def main() -> None:
    data, home, *options = sys.argv[1:]
    sweep = Sweep.from_command_line(options, home=Path(home), train=BASE, folds=2, final_seeds=1)
    run_sweep(sweep, space_of_encoders if sweep.train.features else space, data=Path(data))


if __name__ == "__main__":
    run(main)
