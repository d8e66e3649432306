"""The search space that `mhimdist tune` searches if nobody gives another: that of MHIM-MIL's masking."""

from mhimdist.search.space import Space


def mhim_space(s: Space) -> None:
    """Mask ratios and schedules, the weight and temperature of the consistency loss, and the EMA's momentum.

    `jobs/tune_c16.py` writes the same space out, to copy and edit. It needs a base with MHIM.

    Args:
        s: asks for the values.
    """
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
