#!/usr/bin/env python
"""Search MHIM-MIL's mask ratios, schedules, temperature and EMA momentum on CAMELYON16-like bags."""

from data_prep.digits import ensure
from mhimdist.config.presets import preset
from mhimdist.process import run
from mhimdist.search.space import Space
from mhimdist.sweep.run import Sweep, run_sweep

# The authors' settings, sized for the embedded digits. For real slides use preset("c16", "abmil") as it is.
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
    s.keep_at_least(0.1)
    s.uniform("loss.alpha", 0.01, 1.0, log=True)
    s.uniform("loss.temperature", 0.05, 1.0, log=True)
    s.choice("teacher.momentum.start", [0.99, 0.997, 0.999, 0.9997, 0.9999])
    s.choice("teacher.momentum.kind", ["constant", "cosine"])


def main() -> None:
    sweep = Sweep.from_command_line(about=__doc__, name="tune_c16", train=BASE)
    run_sweep(sweep, space, data=ensure(sweep.data, sweep.home))


if __name__ == "__main__":
    run(main)
