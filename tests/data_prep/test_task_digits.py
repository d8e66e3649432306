"""The embedded data sets of other tasks: what they say is true of them, and their bytes."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep.digits import DATA_SETS, build
from data_prep.embedded.slides import Slide, digit_images
from data_prep.embedded.tasks import (
    GRADE_SHARES,
    GRADED_DIGIT,
    GRADES,
    HAZARD_DIGIT,
    ILL_DIGITS,
    LABEL_DIGITS,
    TASK_SETS,
    known_concordance,
)
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import k_folds

pytestmark = pytest.mark.numeric
DIGESTS = {
    "digits-grades": "f57e807a38f95fe71774e9bf01aafc9c6089d1ff293243182e4929073f465dae",
    "digits-survival": "3ba4aae54c49c7eb2ddaff7b36f3323490dcfeb2a2f2d385dab917096304a2cc",
    "digits-multilabel": "81f288db771fabc6ff9ca9677e1121831ae7475199221040cd6c7d5d9d9120ae",
    "digits-patients": "e328c25ca12f3ce4d3dfbe5acb6134d9d1d3950e52662bdf92a90039b0d36c40",
}


def drawn(name: str, seed: int = 0) -> list[Slide]:
    data_set = DATA_SETS[name]
    return list(data_set.draw(np.random.Generator(np.random.PCG64(seed)), data_set.scale))


@pytest.fixture(scope="module")
def slides() -> dict[str, list[Slide]]:
    return {name: drawn(name) for name in TASK_SETS}


def share(slide: Slide, digit: int, marked: tuple[int, ...]) -> float:
    return float((slide.instance_labels_N == 1 + marked.index(digit)).mean())


@pytest.mark.parametrize("name", TASK_SETS)
def test_no_image_is_shared_by_two_cases(name: str, slides: dict[str, list[Slide]]) -> None:
    images, counts = np.unique(digit_images()[0], axis=0, return_counts=True)
    same_pixels = {row.tobytes() for row in images[counts > 1]}  # two images that averaging made equal
    owner: dict[bytes, str] = {}
    for slide in slides[name]:
        for row in np.unique(slide.features_ND, axis=0):
            if row.tobytes() not in same_pixels:
                assert owner.setdefault(row.tobytes(), slide.case) == slide.case
    assert len(owner) > 1400


@pytest.mark.parametrize("name", TASK_SETS)
def test_instance_labels_say_the_digit(name: str, slides: dict[str, list[Slide]]) -> None:
    features_ID, digits_I = digit_images()
    digits_of_image: dict[bytes, set[int]] = {}
    for row, digit in zip(features_ID, digits_I, strict=True):
        digits_of_image.setdefault(row.tobytes(), set()).add(int(digit))
    marked = {
        "digits-grades": (GRADED_DIGIT,),
        "digits-survival": (HAZARD_DIGIT,),
        "digits-multilabel": LABEL_DIGITS,
        "digits-patients": ILL_DIGITS,
    }[name]
    for slide in slides[name][:40]:
        for row, label in zip(slide.features_ND, slide.instance_labels_N, strict=True):
            expected = {marked[label - 1]} if label else set(range(10)) - set(marked)
            assert digits_of_image[row.tobytes()] & expected


def test_a_grade_is_a_share(slides: dict[str, list[Slide]]) -> None:
    found = slides["digits-grades"]
    assert Counter(slide.label for slide in found) == dict.fromkeys(GRADES, 60)
    for slide in found:
        low, high = GRADE_SHARES[GRADES.index(slide.label)]
        rounding = 0.5 / len(slide.features_ND)
        assert (
            low - rounding
            <= share(slide, GRADED_DIGIT, (GRADED_DIGIT,))
            <= max(high, 2 * rounding) + rounding
        )
    assert all(low[1] < high[0] for low, high in pairwise(GRADE_SHARES))


def test_hazards_follow_the_shares_and_times_the_hazards(slides: dict[str, list[Slide]]) -> None:
    found = slides["digits-survival"]
    shares = [share(slide, HAZARD_DIGIT, (HAZARD_DIGIT,)) for slide in found]
    hazards = [slide.log_hazard for slide in found]
    assert np.corrcoef(shares, hazards)[0, 1] == pytest.approx(1)
    assert -3.01 <= min(hazards) < -2.9
    assert 2.9 < max(hazards) <= 3.01
    months, events = (np.array([float(slide.labels[k]) for slide in found]) for k in (0, 1))
    assert 0.5 < events.mean() < 0.8
    assert months.min() > 0
    # The integrated hazards of exponential times, censored or not, sum to the number of events.
    rates = np.log(2) / 24 * np.exp(hazards)
    assert (rates * months).sum() == pytest.approx(events.sum(), rel=0.2)
    # Censoring knows nothing of the hazard: its own rate is found by the same rule.
    assert (1 - events).sum() / months.sum() == pytest.approx(np.log(2) / 74, rel=0.3)


def test_the_known_concordance_is_harrells() -> None:
    times = [("1.0", "1"), ("2.0", "0"), ("3.0", "1"), ("3.0", "1"), ("4.0", "0")]
    hazards = [2.0, 3.0, 1.0, 0.5, 0.5]
    # Pairs with an earlier event: the first's with all others, 3 of 4 right; both of 3.0 with 4.0.
    assert known_concordance(list(zip(times, hazards, strict=True))) == pytest.approx((3 + 1.5) / 6)
    assert np.isnan(known_concordance([(("1.0", "0"), 0.0), (("2.0", "1"), 1.0)]))


def test_the_manifest_holds_the_known_concordance(tmp_path: Path, slides: dict[str, list[Slide]]) -> None:
    bags = BagShards(build("digits-survival", tmp_path / "survival"))
    best = known_concordance([(slide.labels, slide.log_hazard) for slide in slides["digits-survival"]])
    assert 0.8 < best < 0.9
    said = re.search(r"concordance of ([0-9.]+) ", bags.description)
    assert said is not None
    assert float(said[1]) == pytest.approx(best, abs=5e-5)
    assert bags.task.columns == ("months", "event")
    assert bags.task.unit == "months"
    expected = {slide.name: [float(cell) for cell in slide.labels] for slide in slides["digits-survival"]}
    assert {
        slide: targets.tolist() for slide, targets in zip(bags.slides, bags.targets_NK, strict=True)
    } == expected
    folds = k_folds(
        bags.keys, bags.cases, bags.labels_N, num_folds=5, validation_share=0.2, seed=0, classes=bags.classes
    )
    events = [bags.targets_NK[bags.rows_of(fold.test), 1].sum() for fold in folds]
    assert max(events) - min(events) <= 2


def test_labels_are_there_or_unknown(slides: dict[str, list[Slide]]) -> None:
    found = slides["digits-multilabel"]
    cells = np.array([slide.labels for slide in found])
    assert (cells == "").mean() == pytest.approx(0.1, abs=0.02)
    assert not (cells == "").all(axis=1).any()
    for slide in found:
        for digit, cell in zip(LABEL_DIGITS, slide.labels, strict=True):
            there = share(slide, digit, LABEL_DIGITS)
            assert cell == "" or (there > 0.03) == (there > 0) == (cell == "1")


def test_one_slide_of_an_ill_case_shows_it(slides: dict[str, list[Slide]]) -> None:
    cases: dict[str, list[Slide]] = {}
    for slide in slides["digits-patients"]:
        cases.setdefault(slide.case, []).append(slide)
    assert Counter(len(case) for case in cases.values()).keys() == {2, 3, 4}
    for case in cases.values():
        (label,) = {slide.label for slide in case}
        shown = [slide for slide in case if slide.instance_labels_N.any()]
        assert len(shown) == int(label == "ill")
    assert Counter(case[0].label for case in cases.values()) == {"ill": 50, "healthy": 50}


@pytest.mark.parametrize("name", TASK_SETS)
def test_the_bytes_are_always_the_same(name: str, tmp_path: Path) -> None:
    """A change of these digests would change the results of everyone who uses the sets."""
    assert BagShards(build(name, tmp_path / "made", scale=1 / 100)).digest == DIGESTS[name]
