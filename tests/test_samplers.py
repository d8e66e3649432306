import pytest

from mhimdist import samplers
from mhimdist.errors import SweepError
from mhimdist.presets import preset
from mhimdist.space import Space, kept_share
from mhimdist.sweep import Sweep

BASE = preset("c16", "abmil")


def conditional(s: Space) -> None:
    s.choice("masking.high_pool_share", [0.5, 1.0])
    if s.branch("masking.strategy", ["HAM", "R-HAM"]) == "R-HAM":
        s.uniform("masking.random.start", 0.1, 0.8)
    else:
        s.fix("masking.random", 0.0)


def numbers(s: Space) -> None:
    s.uniform("masking.high.start", 0.01, 0.1, log=True)
    s.uniform("loss.alpha", 0.0, 1.0)


def _first(space, **options):
    sweep = Sweep(train=BASE, **options)
    return samplers.first_params(sweep, space, samplers.examine(space, BASE))


def test_a_grid_walks_every_branch_once():
    points, notes = _first(conditional, sampler="grid", num_trials=99, warm_presets=False)
    assert points[0] == samplers.examine(conditional, BASE).base_params
    plain = [p for p in points[1:] if p["masking.strategy"] == "HAM"]
    masked = [p for p in points[1:] if p["masking.strategy"] == "R-HAM"]
    assert [set(p) for p in plain] == [{"masking.high_pool_share", "masking.strategy"}] * 2
    assert sorted({round(p["masking.random.start"], 6) for p in masked}) == [0.1, 0.45, 0.8]
    assert len(masked) == 6
    assert notes == []


def test_a_grid_larger_than_the_sweep_is_drawn_from_and_that_is_said():
    points, (note,) = _first(conditional, sampler="grid", num_trials=4, warm_presets=False)
    assert len(points) == 4
    assert note == "the grid has 8 points; num_trials 4 tries 3 of them, drawn at random"
    assert points == _first(conditional, sampler="grid", num_trials=4, warm_presets=False)[0]


def test_a_logarithmic_range_is_cut_evenly_in_its_logarithm():
    points, _ = _first(numbers, sampler="grid", num_trials=99, warm_presets=False)
    highs = sorted({point["masking.high.start"] for point in points})
    assert highs == pytest.approx([0.01, 0.1**1.5, 0.1])


def test_the_authors_grid_is_made_of_their_presets():
    points, _ = _first(numbers, sampler="authors_grid", num_trials=99, warm_presets=False)
    assert {(p["masking.high.start"], p["loss.alpha"]) for p in points} == {
        (high, alpha) for high in (0.01, 0.02, 0.03) for alpha in (0.1, 0.5)
    }


def test_the_authors_settings_come_first():
    points, _ = _first(numbers)
    assert points == [
        {"masking.high.start": 0.01, "loss.alpha": 0.1},
        {"masking.high.start": 0.02, "loss.alpha": 0.5},
    ]


def test_cmaes_is_refused_where_it_cannot_search():
    with pytest.raises(SweepError, match=r"cannot choose among values: masking\.high_pool_share, masking"):
        samplers.check("cmaes", samplers.examine(conditional, BASE))

    def branched(s: Space) -> None:
        numbers(s)
        if s.uniform("masking.low.start", 0.0, 0.2) > 0.1:
            s.uniform("loss.temperature", 0.05, 1.0)

    with pytest.raises(SweepError, match=r"every parameter in every trial, but loss\.temperature"):
        samplers.check("cmaes", samplers.examine(branched, BASE))
    samplers.check("cmaes", samplers.examine(numbers, BASE))
    samplers.check("tpe", samplers.examine(conditional, BASE))


def _impossible(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 1.7)


def _unknown(s: Space) -> None:
    s.uniform("loss.alpha", 0, 1)
    s.fix("masking.hihg", 0.1)


def _two_ranges(s: Space) -> None:
    high = s.uniform("masking.high.start", 0.0, 0.5)
    s.uniform("masking.low.start", 0.0, 1 - high)


def _keeps_too_much(s: Space) -> None:
    s.uniform("masking.high.start", 0.005, 0.2)
    s.keep_at_least(0.9)


def _contradicts_itself(s: Space) -> None:
    alpha = s.uniform("loss.alpha", 0, 1)
    s.require(lambda config: config.loss.alpha == 0.1, "have the base's alpha exactly")
    assert alpha >= 0


def _nothing(s: Space) -> None:
    s.fix("loss.alpha", 0.2)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (_impossible, r"impossible configuration, .*high\.start is a ratio in \[0, 1\], got 1\."),
        (_unknown, r"impossible configuration, .*unknown key masking\.hihg \(did you mean high\?\)"),
        (_two_ranges, r"masking\.low\.start is searched in two ways, .*exclude .* with require"),
        (_keeps_too_much, "the base configuration, .*, does not keep at least 0.9 of a bag's instances"),
        (_contradicts_itself, "none of 256 draws .* meets its requirements: have the base's alpha exactly"),
        (_nothing, "the space searches nothing"),
    ],
)
def test_an_impossible_space_is_refused(space, message):
    with pytest.raises(SweepError, match=message):
        samplers.examine(space, BASE)


def test_requirements_are_known_before_any_trial():
    def at_least_half(s: Space) -> None:
        s.uniform("masking.random.start", 0.1, 0.9)
        s.keep_at_least(0.4)

    facts = samplers.examine(at_least_half, BASE)
    assert 0.5 < facts.feasible_share < 0.75  # random up to about 0.6
    points, _ = _first(at_least_half, sampler="grid", num_trials=9, warm_presets=False)
    for point in points:
        config = samplers.draw(at_least_half, BASE, samplers.fixed(point)).config
        assert kept_share(config.masking) >= 0.4
    assert len(points) == 2  # 0.1 and the base's 0.5; 0.9 keeps too little
