#!/usr/bin/env python
"""Search MHIM-MIL's masking, its decay, the temperature and the EMA on CAMELYON16-like bags.

ray job submit --working-dir . -- python jobs/tune_c16.py --help
"""

from data_prep.digits import ensure
from mhimdist.command import run
from mhimdist.config import TrainConfig
from mhimdist.home import home
from mhimdist.presets import preset
from mhimdist.space import Space
from mhimdist.tune import Sweep, run_sweep

# The authors' settings, sized for the embedded digits; for real slides keep preset("c16", "abmil").
BASE = preset("c16", "abmil").override(
    {"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4, "epochs": 25}
)


def space(s: Space) -> None:
    s.schedule("masking.high", 0.002, 0.2, log=True)
    s.choice("masking.high_pool_share", [0.25, 0.5, 1.0])
    strategy = s.branch("masking.strategy", ["HAM", "L-HAM", "R-HAM", "LR-HAM"])
    for kind, letter, longest in (("low", "L", 0.8), ("random", "R", 0.7)):
        if letter in strategy.removesuffix("HAM"):
            s.schedule(f"masking.{kind}", 0.1, longest)
        else:
            s.fix(f"masking.{kind}", 0.0)
    s.uniform("loss.alpha", 0.01, 1.0, log=True)
    s.uniform("loss.temperature", 0.05, 1.0, log=True)
    s.choice("teacher.momentum.start", [0.99, 0.997, 0.999, 0.9997, 0.9999])
    s.choice("teacher.momentum.kind", ["constant", "cosine"])


class Options(Sweep):
    __doc__ = __doc__
    name: str = "tune_c16"
    train: TrainConfig = BASE


def main() -> None:
    options = Options.from_command_line()
    run_sweep(options, space, data=ensure(options.data, home()), home=home())


if __name__ == "__main__":
    run(main)
