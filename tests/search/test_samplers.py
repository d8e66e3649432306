import pytest

from mhimdist.config.presets import preset
from mhimdist.errors import SweepError
from mhimdist.search import first_trials, grid, proposals, samplers
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space, kept_share

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
    return first_trials.first_params(sweep, space, proposals.examine(space, BASE))


def _grid(space, **options):
    return grid.points(Sweep(train=BASE, **options), space, proposals.examine(space, BASE))


def test_a_grid_walks_every_branch_once():
    points = _grid(conditional, sampler="grid")
    plain = [p for p in points if p["masking.strategy"] == "HAM"]
    masked = [p for p in points if p["masking.strategy"] == "R-HAM"]
    assert [set(p) for p in plain] == [{"masking.high_pool_share", "masking.strategy"}] * 2
    assert sorted({round(p["masking.random.start"], 6) for p in masked}) == [0.1, 0.45, 0.8]
    assert len(masked) == 6
    assert _grid(conditional, sampler="tpe") == []


def test_the_seed_alone_sets_the_order_of_a_grid():
    points = _grid(conditional, sampler="grid", num_trials=4)
    assert points == _grid(conditional, sampler="grid", num_trials=99)
    other = _grid(conditional, sampler="grid", num_trials=4, seed=1)
    assert other != points
    assert sorted(map(repr, other)) == sorted(map(repr, points))


def test_a_logarithmic_range_is_cut_evenly_in_its_logarithm():
    highs = sorted({point["masking.high.start"] for point in _grid(numbers, sampler="grid")})
    assert highs == pytest.approx([0.01, 0.1**1.5, 0.1])


def test_the_authors_grid_is_made_of_their_presets():
    points = _grid(numbers, sampler="authors_grid")
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
        samplers.check("cmaes", proposals.examine(conditional, BASE))

    def branched(s: Space) -> None:
        numbers(s)
        if s.uniform("masking.low.start", 0.0, 0.2) > 0.1:
            s.uniform("loss.temperature", 0.05, 1.0)

    with pytest.raises(SweepError, match=r"every trial, but only some trials have loss\.temperature"):
        samplers.check("cmaes", proposals.examine(branched, BASE))
    samplers.check("cmaes", proposals.examine(numbers, BASE))
    samplers.check("tpe", proposals.examine(conditional, BASE))


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
        (_impossible, r"invalid configuration, .*high\.start is a ratio in \[0, 1\], got 1\."),
        (_unknown, r"invalid configuration, .*masking\.hihg: unknown key \(did you mean high\?\)"),
        (_two_ranges, r"masking\.low\.start is searched in two ways, .*exclude .* with require"),
        (_keeps_too_much, "the base configuration, .*, does not keep at least 0.9 of a bag's instances"),
        (_contradicts_itself, "none of 1024 draws .* meets its requirements: have the base's alpha exactly"),
        (_nothing, "the space searches nothing"),
    ],
)
def test_an_impossible_space_is_refused(space, message):
    with pytest.raises(SweepError, match=message):
        proposals.examine(space, BASE)


def test_requirements_are_known_before_any_trial():
    def at_least_half(s: Space) -> None:
        s.uniform("masking.random.start", 0.1, 0.9)
        s.keep_at_least(0.4)

    facts = proposals.examine(at_least_half, BASE)
    assert 0.5 < facts.feasible_share < 0.75  # random up to about 0.6
    points = _grid(at_least_half, sampler="grid")
    for point in points:
        config = proposals.draw(at_least_half, BASE, proposals.fixed(point)).config
        assert kept_share(config.masking) >= 0.4
    assert sorted(point["masking.random.start"] for point in points) == [0.1, 0.5]  # 0.9 keeps too little


def _rare_branch(s: Space) -> None:
    # The last of many choices: a few hundred random draws may all miss it.
    if s.choice("bags_per_step", list(range(1, 2001))) == 2000:
        s.fix("masking.random", 1.5)


def _wrong_at_one_end(s: Space) -> None:
    s.uniform("optimizer.learning_rate", 0.0, 1e-3)


@pytest.mark.parametrize(
    ("space", "message"),
    [(_rare_branch, r"random\.start is a ratio in \[0, 1\]"), (_wrong_at_one_end, "learning_rate")],
)
def test_every_choice_and_every_end_is_drawn_once(space, message):
    with pytest.raises(SweepError, match=f"invalid configuration, .*{message}"):
        proposals.examine(space, BASE)


def _digest_of(floor=0.1, fixed=0.2, limit=0.9) -> str:
    def space(s: Space) -> None:
        s.uniform("masking.random.start", 0.1, 0.6)
        s.fix("loss.alpha", fixed)
        s.keep_at_least(floor)
        s.require(lambda config: config.masking.random.start < limit, "mask at random less than the limit")

    base = BASE.override({"loss.alpha": fixed})
    return proposals.examine(space, base).digest


def test_the_digest_tells_apart_what_a_space_fixes_and_requires():
    digests = [_digest_of(), _digest_of(floor=0.11), _digest_of(fixed=0.3), _digest_of(limit=0.55)]
    assert len(set(digests)) == 4
    assert _digest_of() == digests[0]
