import pytest

from mhimdist.errors import ConfigError
from mhimdist.presets import PRESETS, preset


def test_c16_abmil_is_the_authors():
    c = preset("c16", "abmil")
    assert (c.loss.alpha, c.loss.temperature, c.student_init) == (0.1, 0.1, "projection")
    assert (c.masking.high.start, c.masking.high.kind, c.masking.high.end) == (0.01, "cosine", 0)
    assert (c.masking.high_pool_share, c.masking.low.peak, c.masking.random.start) == (0.5, 0, 0.5)
    assert (c.teacher.kind, c.teacher.momentum.start, c.teacher.momentum.kind) == (
        "init_momentum",
        0.9999,
        "constant",
    )
    assert (c.epochs, c.bags_per_step, c.optimizer.learning_rate, c.optimizer.weight_decay) == (
        200,
        1,
        2e-4,
        1e-5,
    )


def test_tcga_abmil_is_the_authors():
    c = preset("tcga", "abmil")
    assert c.model.gated
    assert (c.loss.alpha, c.masking.strategy, c.masking.high_pool_share) == (0.5, "LR-HAM", 1)
    assert (c.masking.high.start, c.masking.low.start, c.masking.random.start) == (0.02, 0.2, 0.7)
    assert c.teacher.momentum.at(1.0) == 1.0


def test_every_preset_is_valid():
    for name in PRESETS:
        assert preset(*name).teacher.kind == "init_momentum"


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"no preset \(c17, abmil\); there are \(c16, abmil\)"):
        preset("c17", "abmil")
