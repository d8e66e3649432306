"""The embedded data sets of two classes: `digits-c16`, `digits-tcga` and `c16-shaped`.

Dimensions: N instances of a bag, D features, I images of all digits, K images of one kind.
"""

from collections.abc import Iterator

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

HARD_DIGIT, SALIENT_DIGIT = 8, 9
SUBTYPE_DIGITS = (1, 8)  # the two digits that 4 x 4 pixels tell apart worst
C16_CLASSES, TCGA_CLASSES = ("normal", "tumor"), ("subtype_1", "subtype_8")
NUM_C16_CASES = 20
NUM_TCGA_CASES = 80
SHAPED_FEATURES = 1024


def _c16_sizes(rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deal CAMELYON16's labels, bag sizes and tumour fractions out to its 398 slides, in random order.

    Sizes and fractions are independent of each other. Every observed one is used before any is used again.

    Returns:
        Label, bag size and number of positive instances of each slide, int64.
    """
    facts = c16_facts()
    labels = rng.permutation(np.repeat([0, 1], [facts["num_slides"]["normal"], facts["num_slides"]["tumor"]]))
    sizes = np.resize(rng.permutation(facts["bag_sizes"]), len(labels))
    sizes = np.maximum(MIN_POSITIVES, np.rint(sizes * scale)).astype(np.int64)
    num_positives = np.zeros_like(labels)
    fractions = np.resize(rng.permutation(facts["tumour_fractions"]), labels.sum())
    num_positives[labels == 1] = np.maximum(MIN_POSITIVES, np.rint(fractions * sizes[labels == 1]))
    return labels, sizes, num_positives


def _digits_c16(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    features_ID, digits_I = digit_images()
    case_I = deal(rng, digits_I, [np.arange(NUM_C16_CASES)] * 10)
    positive_I = (digits_I == HARD_DIGIT) | (digits_I == SALIENT_DIGIT)
    instance_labels_I = np.select([digits_I == HARD_DIGIT, digits_I == SALIENT_DIGIT], [1, 2], 0)
    labels, sizes, num_positives = _c16_sizes(rng, scale)
    # Slides sorted by label and dealt out in turn: every case gets its share of both classes.
    cases = np.empty_like(labels)
    cases[np.argsort(labels, kind="stable")] = np.resize(np.arange(NUM_C16_CASES), len(labels))
    for i, case in enumerate(cases):
        positives_K = np.flatnonzero((case_I == case) & positive_I)
        negatives_K = np.flatnonzero((case_I == case) & ~positive_I)
        images_N = draw_bag(rng, positives_K, negatives_K, num_positives[i], sizes[i])
        yield Slide(
            name=f"slide_{i:03d}",
            labels=(C16_CLASSES[labels[i]],),
            case=f"case_{case:02d}",
            features_ND=features_ID[images_N],
            instance_labels_N=instance_labels_I[images_N].astype(np.uint8),
        )


def _digits_tcga(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    features_ID, digits_I = digit_images()
    cases = np.arange(NUM_TCGA_CASES)
    subtype_of_case = rng.permutation(cases % 2)
    cases_of_digit = [cases] * 10
    for subtype, digit in enumerate(SUBTYPE_DIGITS):
        cases_of_digit[digit] = cases[subtype_of_case == subtype]
    case_I = deal(rng, digits_I, cases_of_digit)
    tumour_I = np.isin(digits_I, SUBTYPE_DIGITS)
    bag_sizes = c16_facts()["bag_sizes"]
    for case in cases:
        tumour_K = np.flatnonzero((case_I == case) & tumour_I)
        stroma_K = np.flatnonzero((case_I == case) & ~tumour_I)
        for i in range(rng.integers(1, 4)):
            size = max(MIN_POSITIVES, round(rng.choice(bag_sizes) * scale))
            num_tumour = max(1, round(rng.uniform(0.3, 0.8) * size))
            images_N = draw_bag(rng, tumour_K, stroma_K, num_tumour, size)
            yield Slide(
                name=f"case_{case:03d}_slide_{i}",
                labels=(TCGA_CLASSES[subtype_of_case[case]],),
                case=f"case_{case:03d}",
                features_ND=features_ID[images_N],
                instance_labels_N=tumour_I[images_N].astype(np.uint8),
            )


def _c16_shaped(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    for i, (label, size, num_positives) in enumerate(zip(*_c16_sizes(rng, scale), strict=True)):
        instance_labels_N = np.zeros(size, np.uint8)
        instance_labels_N[rng.choice(size, num_positives, replace=False)] = 1
        features_ND = rng.standard_normal((size, SHAPED_FEATURES), np.float32).astype(np.float16)
        features_ND[instance_labels_N == 1, :32] += 1
        yield Slide(
            name=f"synthetic_{i:03d}",
            labels=(C16_CLASSES[label],),
            case=f"synthetic_case_{i:03d}",
            features_ND=features_ND,
            instance_labels_N=instance_labels_N,
        )


CLASS_SETS = {
    "digits-c16": DataSet(
        classes=C16_CLASSES,
        description="Real handwritten digits (4 x 4 pixels) in bags sampled with the sizes and positive "
        "fractions of CAMELYON16",
        synthetic=False,
        scale=DIGITS_SCALE,
        draw=_digits_c16,
    ),
    "digits-tcga": DataSet(
        classes=TCGA_CLASSES,
        description="Real handwritten digits (4 x 4 pixels) in bags of two subtypes, several slides a case",
        synthetic=False,
        scale=DIGITS_SCALE,
        draw=_digits_tcga,
    ),
    "c16-shaped": DataSet(
        classes=C16_CLASSES,
        description="SYNTHETIC noise in bags of the sizes of CAMELYON16: for scale and I/O, not for accuracy",
        synthetic=True,
        scale=1.0,
        draw=_c16_shaped,
    ),
}
