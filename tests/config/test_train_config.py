import warnings

import pytest

from mhimdist.config.presets import preset
from mhimdist.config.train import ConfigWarning, TrainConfig, load_config
from mhimdist.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking.hihg": 0.1}, r"masking\.hihg: unknown key \(did you mean high\?\); valid here: high, "),
        ({"model.hiden_dim": 3}, r"model\.hiden_dim: unknown key \(did you mean hidden_dim\?\)"),
        ({"epoch": 3}, r"epoch: unknown key \(did you mean epochs\?\); valid here: bags_per_step, "),
        ({"epochs": 0}, r"epochs: .* greater than or equal to 1, got 0"),
        ({"model.name": "foo"}, r"model\.name: no model 'foo'; valid: abmil, dsmil, transmil, clam_sb, "),
        ({"masking.high.start": 2}, r"masking: high\.start is a ratio in \[0, 1\], got 2"),
        ({"masking.high.kind": "cos"}, r"masking\.high\.kind: .*'constant', 'cosine'.*got 'cos'"),
        ({"epochs.x": 3}, r"epochs: Input should be a valid integer"),
        ({"teacher.momentum.start": 1.5}, r"teacher\.momentum\.start: .* less than or equal to 1"),
        ({"teacher.kind": "none"}, r"masking by score needs a teacher"),
        ({"model": {"name": "mean_pooling"}}, r"mean_pooling has no scores to mask by"),
        ({"model": {"name": "clam_mb"}}, r"clam_mb has no scores to mask by"),
        ({"model": {"name": "dtfd"}}, r"dtfd has no scores to mask by"),
        (
            {"model": {"name": "transmil", "gated": True}},
            r"model\.gated: unknown key \(it belongs to model\.name abmil\); valid",
        ),
        (
            {"task.survival_loss": "cox"},
            r"task\.survival_loss: unknown key \(it belongs to task\.name survival\)",
        ),
        (
            {"model": {"name": "transmil", "hidden_dim": 100}},
            r"model: hidden_dim must be a multiple of 8 heads, got 100",
        ),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        preset("c16", "abmil").override(changes)
    assert "\n" not in str(caught.value)


def test_override_changes_nothing_else_and_keeps_the_original():
    base = preset("c16", "abmil")
    changed = base.override({"masking.high.start": 0.03, "epochs": 25})
    assert (changed.masking.high.start, changed.masking.high.kind, changed.epochs) == (0.03, "cosine", 25)
    assert (base.masking.high.start, base.epochs) == (0.01, 200)
    assert changed.override({"masking.high.start": 0.01, "epochs": 200}) == base


def test_a_number_stands_for_a_constant_schedule():
    assert load_config({"masking": {"low": 0.2}}).masking.low.at(0.7) == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.alpha": 0, "loss.temperature": 0.5}, r"loss\.temperature: loss\.alpha is 0"),
        (
            {"teacher.kind": "init", "teacher.momentum.start": 0.9},
            r"teacher\.momentum: a teacher of kind init does not move",
        ),
        ({"masking.high": 0}, r"masking\.high_pool_share: masking\.high is 0"),
        ({"masking.low.end": 0.3}, r"masking\.low\.end: the schedule is constant"),
        (
            {"teacher.kind": "momentum", "student_init": "all"},
            r"student_init: a teacher of kind momentum has no pre-trained network",
        ),
    ],
)
def test_a_setting_without_effect_warns(changes, message):
    with pytest.warns(ConfigWarning, match=message):
        preset("c16", "abmil").override(changes)


def test_defaults_and_presets_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_config({})
        preset("c16", "abmil").override({"epochs": 3})
        preset("tcga", "abmil")


@pytest.mark.parametrize(
    ("high", "low", "random", "name"),
    [
        (0.1, 0, 0, "HAM"),
        (0.1, 0.1, 0, "L-HAM"),
        (0.1, 0, 0.1, "R-HAM"),
        (0.1, 0.1, 0.1, "LR-HAM"),
        (0, 0, 0, "none"),
        (0, 0, 0.5, "random"),
    ],
)
def test_strategies_have_the_papers_names(high, low, random, name):
    config = load_config({"masking": {"high": high, "low": low, "random": random}})
    assert config.masking.strategy == name


def test_the_first_stage_is_the_same_network_without_the_method():
    config = preset("c16", "abmil").override({"loss.class_weights": [1, 2], "epochs": 9})
    stage = config.first_stage()
    assert stage.masking.strategy == "none"
    assert stage.teacher.kind == "none"
    assert stage.loss.alpha == 0
    assert stage.loss.class_weights == (1, 2)
    assert (stage.model, stage.optimizer, stage.epochs, stage.seed) == (
        config.model,
        config.optimizer,
        9,
        config.seed,
    )
    assert stage.first_stage() == stage


def test_the_digest_tells_configurations_apart():
    base = preset("c16", "abmil")
    assert base.digest() == preset("c16", "abmil").digest()
    assert base.digest() != base.override({"seed": 1}).digest()


@pytest.mark.parametrize("weights", [[-1, 2], [0.0, 1.0]])
def test_class_weights_are_above_zero(weights):
    with pytest.raises(ConfigError, match=r"loss\.class_weights\.0: Input should be greater than 0, got"):
        preset("c16", "abmil").override({"loss.class_weights": weights})


def test_whose_weights_a_file_gives_is_part_of_the_recipe_only_where_there_is_a_file():
    base = preset("c16", "abmil")
    assert "weights_of" not in base.recipe()["teacher"]
    ours, theirs = (
        base.override({"teacher.weights": "it.pt", "teacher.weights_of": which})
        for which in ("model", "teacher")
    )
    assert ours.digest() != theirs.digest()
    with pytest.warns(ConfigWarning, match=r"teacher\.weights_of: teacher\.weights is none"):
        base.override({"teacher.weights_of": "teacher"})


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        ("step", [1, 1, 1, 0.2, 0.2]),
        ("constant", [1] * 5),
        ("cosine", [1, 0.904508, 0.654508, 0.345492, 0.095492]),
    ],
)
def test_the_learning_rate_decays_by_epoch(decay, rates):
    optimizer = load_config({"optimizer": {"learning_rate": 1.0, "decay": decay}}).optimizer
    assert [optimizer.rate(epoch, 5, 1) for epoch in range(5)] == pytest.approx(rates, abs=1e-6)
    assert [optimizer.rate(epoch, 4, 1) for epoch in (1, 2)] == pytest.approx(
        {"step": [1, 0.2], "constant": [1, 1], "cosine": [0.853553, 0.5]}[decay], abs=1e-6
    )


def test_json_round_trip():
    config = preset("tcga", "abmil")
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.faults(52)
@pytest.mark.parametrize("wrap", [lambda inner: {"model": inner}, lambda inner: {"epochs": [inner]}])
def test_a_configuration_of_3000_levels_is_an_error(wrap):
    tree = {}
    for _ in range(3000):
        tree = wrap(tree)
    with pytest.raises(ConfigError, match="nest too deep"):
        load_config(tree)
    with pytest.raises(ConfigError, match="nest too deep"):
        TrainConfig().override(tree)


def test_an_unknown_key_may_be_called_as_a_model_is():
    with pytest.raises(ConfigError, match=r"^abmil: unknown key; valid here: .*masking"):
        load_config({"model": {"name": "abmil"}, "abmil": None})
    with pytest.raises(ConfigError, match=r"^model\.clam_sb: unknown key; valid here: .*hidden_dim"):
        load_config({"model": {"name": "abmil", "clam_sb": 1}})
