import pytest

from mhimdist.config.models import MODEL_NAMES
from mhimdist.config.presets import preset
from mhimdist.errors import ConfigError


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


@pytest.mark.parametrize(
    ("dataset", "alpha", "high", "pool_share", "low", "random", "momentum_kind"),
    [
        ("c16", 0.1, 0.03, 0.5, 0.8, 0, "cosine"),
        ("tcga", 0.5, 0.02, 1, 0.2, 0.6, "constant"),
    ],
)
def test_transmil_has_ratios_of_its_own(dataset, alpha, high, pool_share, low, random, momentum_kind):
    c = preset(dataset, "transmil")
    assert c.model.name == "transmil"
    assert (c.loss.alpha, c.teacher.momentum.kind) == (alpha, momentum_kind)
    assert (c.masking.high.start, c.masking.high_pool_share) == (high, pool_share)
    assert (c.masking.low.start, c.masking.random.start) == (low, random)


@pytest.mark.parametrize("dataset", ["c16", "tcga"])
def test_dsmil_differs_from_abmil_in_the_network_alone(dataset):
    dsmil, abmil = preset(dataset, "dsmil"), preset(dataset, "abmil")
    assert dsmil.model.name == "dsmil"
    assert dsmil.model_copy(update={"model": abmil.model}) == abmil


@pytest.mark.parametrize("dataset", ["c16", "tcga"])
def test_there_is_a_preset_of_every_model(dataset):
    masked = {"abmil", "dsmil", "transmil"}
    for name in MODEL_NAMES:
        config = preset(dataset, name)
        assert config.model.name == name
        assert config.teacher.kind == ("init_momentum" if name in masked else "none")


@pytest.mark.parametrize("dataset", ["c16", "tcga"])
def test_dtfd_has_its_authors_optimiser(dataset):
    optimizer = preset(dataset, "dtfd").optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 1e-4)
    assert (optimizer.decay, optimizer.clip_norm) == ("step", 5.0)
    usual = preset(dataset, "abmil").optimizer
    assert (usual.decay, usual.clip_norm) == ("cosine", None)


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize(("dataset", "patience", "from_epoch"), [("c16", 30, 130), ("tcga", 20, 70)])
def test_runs_stop_early_as_the_authors_did(dataset, patience, from_epoch, name):
    stopping = preset(dataset, name).early_stopping
    assert (stopping.patience, stopping.from_epoch) == (patience, from_epoch)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_clam_clusters_for_subtyping_where_the_classes_are_subtypes(name):
    assert preset("tcga", name).model.subtyping
    assert not preset("c16", name).model.subtyping


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"no preset \(c17, abmil\); valid: \(c16, abmil\)"):
        preset("c17", "abmil")
