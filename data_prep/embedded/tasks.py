"""The embedded data sets of other tasks: grades, survival, several labels, and patients of several slides.

Dimensions: N instances of a bag, I images of all digits, K images of one kind, S slides.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.embedded.slides import (
    DIGITS_SCALE,
    MIN_POSITIVES,
    DataSet,
    Slide,
    c16_facts,
    deal,
    digit_images,
    draw_bag,
)
from mhimdist.data.targets import TaskInfo

GRADED_DIGIT = 9
GRADES = ("G1", "G2", "G3", "G4")
GRADE_SHARES = ((0.0, 0.0), (0.03, 0.08), (0.15, 0.25), (0.4, 0.6))
"""The share of a bag that is the digit, lowest and highest, by grade."""
NUM_GRADED_CASES, SLIDES_A_CASE = 40, 6

HAZARD_DIGIT = 4  # most patients have a single image of it, so it is one that 4 x 4 pixels show well
SURVIVAL = TaskInfo(name="survival", columns=("months", "event"), unit="months")
NUM_PATIENTS = 160
HAZARD_SHARES = (0.0, 0.5)
LOG_HAZARD_RANGE = 6.0
"""The log hazard of a bag of the highest share, above that of one of the lowest."""
MEDIAN_MONTHS = 24.0
CENSORING_MEDIAN_MONTHS = 74.0
"""Times are censored at random, by an exponential time of this median: about a third of all."""

LABEL_DIGITS = (2, 5, 9)
MULTILABEL = TaskInfo(name="multilabel", columns=tuple(f"digit_{digit}" for digit in LABEL_DIGITS))
LABEL_RATES = (0.5, 0.35, 0.2)
LABEL_SHARES = (0.05, 0.2)
MISSING_RATE = 0.15  # one cell of a slide is always known, so that a tenth of all is missing

CASE_CLASSES = ("healthy", "ill")
ILL_DIGITS = (7, 9)
ILL_SHARES = (0.06, 0.15)
NUM_ILL_OR_HEALTHY = 100


class _Images:
    """The images of digits, dealt out to cases, of which bags are drawn."""

    def __init__(self, rng: np.random.Generator, num_cases: int) -> None:
        self._rng = rng
        self.features_ID, self.digits_I = digit_images()
        self._case_I = deal(rng, self.digits_I, [np.arange(num_cases)] * 10)
        self._sizes = np.array(c16_facts()["bag_sizes"])

    def size(self, scale: float) -> int:
        """The number of instances of a bag: one of CAMELYON16's, scaled."""
        return max(2 * MIN_POSITIVES, round(self._rng.choice(self._sizes) * scale))

    def bag(self, case: int, counts: dict[int, int], size: int, without: Sequence[int]) -> np.ndarray:
        """Images of a case, int64 N in random order.

        Args:
            case: the case.
            counts: how many instances are of each of some digits.
            size: number of instances.
            without: digits that the other instances are not of.
        """
        own_I = self._case_I == case
        others_K = np.flatnonzero(own_I & ~np.isin(self.digits_I, without))
        parts = [
            draw_bag(self._rng, np.flatnonzero(own_I & (self.digits_I == digit)), others_K, count, count)
            for digit, count in counts.items()
        ]
        rest = self._rng.choice(others_K, size - sum(counts.values()))
        return self._rng.permutation(np.concatenate([*parts, rest]))


def _slide(
    images: _Images, images_N: np.ndarray, name: str, case: str, labels: Sequence[str], marked: Sequence[int]
) -> Slide:
    """A slide whose instance labels say which of the marked digits an instance is, from 1, or 0."""
    digits_N = images.digits_I[images_N]
    instance_labels_N = np.select([digits_N == digit for digit in marked], range(1, len(marked) + 1), 0)
    return Slide(name, tuple(labels), case, images.features_ID[images_N], instance_labels_N.astype(np.uint8))


def _digits_grades(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    images = _Images(rng, NUM_GRADED_CASES)
    grades_S = rng.permutation(np.resize(np.arange(len(GRADES)), NUM_GRADED_CASES * SLIDES_A_CASE))
    for i, grade in enumerate(grades_S):
        case, size = i // SLIDES_A_CASE, images.size(scale)
        low, high = GRADE_SHARES[grade]
        count = max(1, round(rng.uniform(low, high) * size)) if high else 0
        images_N = images.bag(case, {GRADED_DIGIT: count}, size, [GRADED_DIGIT])
        name = f"slide_{i:03d}"
        yield _slide(images, images_N, name, f"case_{case:02d}", [GRADES[grade]], [GRADED_DIGIT])


def _digits_survival(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    images = _Images(rng, NUM_PATIENTS)
    # Evenly spread and shuffled, so that every seed has the same spread of hazards.
    shares_S = rng.permutation(np.linspace(*HAZARD_SHARES, NUM_PATIENTS))
    for i, share in enumerate(shares_S):
        size = images.size(scale)
        count = round(share * size)
        images_N = images.bag(i, {HAZARD_DIGIT: count}, size, [HAZARD_DIGIT])
        log_hazard = LOG_HAZARD_RANGE * (count / size - np.mean(HAZARD_SHARES)) / np.ptp(HAZARD_SHARES)
        of_event = rng.exponential(MEDIAN_MONTHS / np.log(2) / np.exp(log_hazard))
        of_censoring = rng.exponential(CENSORING_MEDIAN_MONTHS / np.log(2))
        months = max(0.01, min(of_event, of_censoring))
        labels = (f"{months:.2f}", str(int(of_event <= of_censoring)))
        slide = _slide(images, images_N, f"slide_{i:03d}", f"patient_{i:03d}", labels, [HAZARD_DIGIT])
        yield Slide(
            slide.name, labels, slide.case, slide.features_ND, slide.instance_labels_N, float(log_hazard)
        )


def _digits_multilabel(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    images = _Images(rng, NUM_GRADED_CASES)
    for i in range(NUM_GRADED_CASES * SLIDES_A_CASE):
        case, size = i // SLIDES_A_CASE, images.size(scale)
        has = rng.random(len(LABEL_DIGITS)) < LABEL_RATES
        known = rng.random(len(LABEL_DIGITS)) >= MISSING_RATE
        known[rng.integers(len(LABEL_DIGITS))] = True  # a slide of which nothing is known teaches nothing
        counts = {
            digit: max(1, round(rng.uniform(*LABEL_SHARES) * size))
            for digit, there in zip(LABEL_DIGITS, has, strict=True)
            if there
        }
        images_N = images.bag(case, counts, size, LABEL_DIGITS)
        cells = [str(int(one)) if sure else "" for one, sure in zip(has, known, strict=True)]
        yield _slide(images, images_N, f"slide_{i:03d}", f"case_{case:02d}", cells, LABEL_DIGITS)


def _digits_patients(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    images = _Images(rng, NUM_ILL_OR_HEALTHY)
    ill_of_case = rng.permutation(np.arange(NUM_ILL_OR_HEALTHY) % 2)
    for case, ill in enumerate(ill_of_case):
        num_slides = int(rng.integers(2, 5))
        shows_S = rng.permutation(np.arange(num_slides) == 0) & bool(ill)
        for i, shows in enumerate(shows_S):
            size = images.size(scale)
            counts = np.zeros(len(ILL_DIGITS), np.int64)
            if shows:
                counts += max(MIN_POSITIVES, round(rng.uniform(*ILL_SHARES) * size)) // 2 + 1
            images_N = images.bag(case, dict(zip(ILL_DIGITS, counts.tolist(), strict=True)), size, ILL_DIGITS)
            name, patient = f"patient_{case:03d}_slide_{i}", f"patient_{case:03d}"
            yield _slide(images, images_N, name, patient, [CASE_CLASSES[ill]], ILL_DIGITS)


def known_concordance(slides: Sequence[tuple[Sequence[str], float]]) -> float:
    """Harrell's concordance of the true hazards with the times: the best that a model can hope for.

    Args:
        slides: time and event of each slide, as the label table has them, and its log hazard.

    Returns:
        The share of comparable pairs in which the patient with the earlier event has the higher hazard; NaN
        if no two are comparable.
    """
    time_S = np.array([float(labels[0]) for labels, _ in slides])
    event_S = np.array([labels[1] == "1" for labels, _ in slides])
    hazard_S = np.array([hazard for _, hazard in slides])
    comparable_SS = (time_S[:, None] < time_S) & event_S[:, None]
    right_SS = (hazard_S[:, None] > hazard_S) + 0.5 * (hazard_S[:, None] == hazard_S)
    return float(right_SS[comparable_SS].mean()) if comparable_SS.any() else float("nan")


TASK_SETS = {
    "digits-grades": DataSet(
        classes=GRADES,
        description="Real handwritten digits (4 x 4 pixels); the grade is the share of the digit "
        f"{GRADED_DIGIT} in a bag",
        synthetic=False,
        scale=DIGITS_SCALE,
        draw=_digits_grades,
        task=TaskInfo(name="ordinal"),
    ),
    "digits-survival": DataSet(
        classes=(),
        description=f"Real handwritten digits (4 x 4 pixels); the hazard grows with the share of the digit "
        f"{HAZARD_DIGIT} in a bag, and a third of the patients is censored at random",
        synthetic=False,
        scale=DIGITS_SCALE,
        draw=_digits_survival,
        task=SURVIVAL,
    ),
    "digits-multilabel": DataSet(
        classes=(),
        description=f"Real handwritten digits (4 x 4 pixels); which of the digits "
        f"{', '.join(map(str, LABEL_DIGITS))} a bag holds, a tenth of it unknown",
        synthetic=False,
        scale=DIGITS_SCALE,
        draw=_digits_multilabel,
        task=MULTILABEL,
    ),
    "digits-patients": DataSet(
        classes=CASE_CLASSES,
        description="Real handwritten digits (4 x 4 pixels) in two to four slides a case; one slide of an "
        "ill case shows it, and all have its label",
        synthetic=False,
        scale=DIGITS_SCALE,
        draw=_digits_patients,
    ),
}
