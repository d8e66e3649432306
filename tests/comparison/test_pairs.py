from dataclasses import replace

import numpy as np
import pytest
from written_runs import MASKED, PLAIN, write_cross_validation

from mhimdist.comparison.entries import Entry, Network, read_entries
from mhimdist.comparison.pairs import on_the_same_slides, paired_tests
from mhimdist.errors import ComparisonError
from mhimdist.statistics import metrics
from mhimdist.statistics.delong import delong_test
from mhimdist.statistics.metrics import Scores
from mhimdist.statistics.paired import corrected_t, mcnemar

HOW = {"level": 0.95, "num_resamples": 200, "seed": 0}


def _entry(name="it", networks=None, **changes):
    labels = np.arange(8) % 2
    scores = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.4, 0.6, 0.7])
    part = Scores(labels, np.stack([1 - scores, scores], axis=1), [f"c{i}" for i in range(8)])
    made = [Network(tuple(f"s{i}" for i in range(8)), part, 0.5, fold=1, seed=1)]
    fields = {"folder": None, "settings": {}, "protocol": "strict", "data_digest": "d", "dataset": "x"}
    return Entry(name=name, networks=tuple(networks or made), **(fields | changes))


def _fewer(entry, slides):
    return replace(entry, networks=tuple(network.only(slides) for network in entry.networks))


def test_the_same_slides_need_no_note():
    one, two = _entry("one"), _entry("two")
    entries, notes = on_the_same_slides([one, two], common=False)
    assert (entries[0].networks[0].keys, notes) == (one.networks[0].keys, [])


def test_other_slides_are_refused_by_name_or_compared_on_those_in_common():
    one, two = _entry("one"), _fewer(_entry("two"), {f"s{i}" for i in range(2, 8)})
    with pytest.raises(ComparisonError, match="got 8 of one and 6 of two: 2 only in the first, such as 's0'"):
        on_the_same_slides([one, two], common=False)
    entries, (note,) = on_the_same_slides([one, two], common=True)
    assert note == "Compared on the 6 test slides that all have in common, of up to 8."
    for entry in entries:
        assert entry.networks[0].keys == tuple(f"s{i}" for i in range(2, 8))
        assert entry.networks[0].scores.labels_N.tolist() == [0, 1, 0, 1, 0, 1]
    apart = _fewer(_entry("three"), {"s0"})
    with pytest.raises(ComparisonError, match="no slide in common"):
        on_the_same_slides([two, apart], common=True)


def test_another_data_set_is_refused_or_noted():
    one, two = _entry("one"), _entry("two", data_digest="e", dataset="y")
    with pytest.raises(ComparisonError, match="expected one data set, got one: x d; two: y e; --common"):
        on_the_same_slides([one, two], common=False)
    _, (note,) = on_the_same_slides([one, two], common=True)
    assert "The data sets differ (one: x d; two: y e): slides are matched by name." in note


@pytest.mark.parametrize("common", [False, True])
def test_what_no_option_makes_comparable(common):
    one = _entry("one")
    with pytest.raises(ComparisonError, match="expected one protocol, got strict for one and paper for two"):
        on_the_same_slides([one, _entry("two", protocol="paper")], common=common)
    nested = _entry("one", protocol="nested")
    with pytest.raises(ComparisonError, match="expected one protocol, got nested for one and strict for two"):
        on_the_same_slides([nested, _entry("two")], common=common)
    named = [_entry("one", classes=("a", "b")), _entry("two", classes=("b", "a"))]
    with pytest.raises(ComparisonError, match="same classes, got a, b for one and b, a for two"):
        on_the_same_slides(named, common=common)
    (network,) = one.networks
    flipped = replace(network, scores=replace(network.scores, labels_N=1 - network.scores.labels_N))
    with pytest.raises(ComparisonError, match=r"slide 's0' is case 'c0' of class 0 for one, and .* class 1"):
        on_the_same_slides([one, _entry("two", [flipped])], common=common)
    three = replace(network, scores=replace(network.scores, probabilities_NC=np.full((8, 3), 1 / 3)))
    with pytest.raises(ComparisonError, match="same classes, got 2 for one and 3 for two"):
        on_the_same_slides([one, _entry("two", [three])], common=common)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    shifts = {"MHIM (abmil)": (MASKED, 1.5), "abmil": (PLAIN, 0.3)}
    return read_entries(write_cross_validation(tmp_path_factory.mktemp("cv") / "cv", shifts, num_slides=120))


def test_the_tests_of_a_pair_are_those_of_its_parts(sides):
    one, two = ([network.scores for network in side.networks] for side in sides)
    delong, bootstrap, folds, accuracy = paired_tests(*sides, **HOW)
    assert delong.tested == delong_test(one, two)
    each = [[metrics.auc(part.labels_N, part.probabilities_NC) for part in parts] for parts in (one, two)]
    assert (delong.first, delong.second) == pytest.approx((np.mean(each[0]), np.mean(each[1])))
    assert delong.tested.difference == pytest.approx(delong.first - delong.second)
    assert delong.tested.p < 0.001
    ends = metrics.auc_difference_interval(one, two, num_resamples=200)
    assert (bootstrap.tested.low, bootstrap.tested.high, bootstrap.tested.p) == (*ends, None)
    assert folds.tested == corrected_t(np.subtract(*each), 40 / 80)
    assert accuracy.metric == "accuracy"
    assert accuracy.first > accuracy.second


def test_seeds_are_averaged_before_a_slide_is_decided():
    (network,) = _entry().networks
    shifted = replace(
        network,
        scores=replace(network.scores, probabilities_NC=network.scores.probabilities_NC[::-1]),
        threshold=0.2,
        seed=2,
    )
    *_, accuracy = paired_tests(_entry("one", [network, shifted]), _entry("two"), **HOW)
    positive = network.scores.probabilities_NC[:, 1]
    margin = (positive - 0.5) + (positive[::-1] - 0.2)
    labels = network.scores.labels_N
    right, alone = (margin >= 0) == labels, (positive >= 0.5) == labels
    assert (accuracy.first, accuracy.second) == (right.mean(), alone.mean())
    assert accuracy.tested.p == mcnemar((right & ~alone).sum(), (alone & ~right).sum())[1]


def test_more_classes_are_decided_by_the_mean_probability():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    labels = np.arange(30) % 3
    part = Scores(labels, probabilities, [str(i) for i in range(30)])
    network = Network(tuple(f"s{i}" for i in range(30)), part, None, 1, 1)
    delong, *_, accuracy = paired_tests(_entry("a", [network]), _entry("b", [network, network]), **HOW)
    assert accuracy.first == accuracy.second == (probabilities.argmax(1) == labels).mean()
    assert (delong.tested.p, delong.first) == (1.0, pytest.approx(metrics.auc(labels, probabilities)))


def test_folds_are_compared_only_where_both_have_the_same(sides):
    first, second = sides
    seed_one = replace(second, networks=tuple(n for n in second.networks if n.seed == 1))
    *_, folds, _ = paired_tests(first, seed_one, **HOW)
    assert folds.tested.note.startswith("2 degrees of freedom")
    one_fold = [replace(side, networks=side.networks[:1]) for side in sides]
    assert "fewer than two folds" in paired_tests(*one_fold, **HOW)[2].note
    (network,) = _entry().networks
    seeds = _entry(networks=[network, replace(network, seed=2)])
    assert "their seeds differ, and their data do not" in paired_tests(seeds, seeds, **HOW)[2].note


def test_what_is_undefined_says_why_and_breaks_nothing():
    (network,) = _entry().networks
    one_class = network.only({"s0", "s2", "s4"})
    delong, bootstrap, folds, accuracy = paired_tests(
        _entry("a", [one_class]), _entry("b", [one_class]), **HOW
    )
    assert (delong.first, delong.tested, bootstrap.tested, folds.tested) == (None, None, None, None)
    assert "lack a class" in delong.note
    assert "undefined" in bootstrap.note
    assert (accuracy.first, accuracy.tested.p) == (1.0, 1.0)
    one_case = network.only({"s0"})
    outcomes = paired_tests(_entry("a", [one_case]), _entry("b", [one_case]), **HOW)
    assert [outcome.tested for outcome in outcomes] == [None] * 4
    assert "at least two cases" in outcomes[3].note


def test_a_pair_of_equals_has_uniform_p_values(tmp_path):
    """The whole way, with folds, seeds and several slides per case, under no difference."""
    from scipy.stats import kstest

    generator = np.random.default_rng(8)
    p_values = []
    cases = [f"c{i // 2}" for i in range(120)]
    labels = np.repeat(np.arange(60) % 2, 2)
    for _ in range(150):
        shared = labels + np.repeat(generator.normal(size=60), 2)
        sides = []
        for name in ("a", "b"):
            networks = []
            for seed in (1, 2):
                scores = shared + 0.7 * generator.normal(size=120)
                fold_of = np.repeat(np.random.default_rng(seed).permutation(60) % 3, 2)
                for fold in range(3):
                    rows = np.flatnonzero(fold_of == fold)
                    part = Scores(
                        labels[rows],
                        np.stack([-scores[rows], scores[rows]], axis=1),
                        [cases[i] for i in rows],
                    )
                    networks.append(Network(tuple(f"s{i}" for i in rows), part, 0.5, fold + 1, seed))
            sides.append(_entry(name, networks))
        p_values.append(delong_test(*([network.scores for network in side.networks] for side in sides)).p)
    assert kstest(p_values, "uniform").pvalue > 0.01
