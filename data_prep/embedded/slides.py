"""What the embedded data sets share: their slides, and the images of digits that these are drawn from.

Dimensions: N instances of a bag, D features, I images of all digits, K images of one kind.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from mhimdist.data.targets import CLASSIFICATION, TaskInfo

MIN_POSITIVES = 5
DIGITS_SCALE = 1 / 20
"""Default bag size of the sets of digits relative to CAMELYON16's."""


@dataclass(frozen=True, eq=False)
class Slide:
    """One slide of a data set.

    Attributes:
        name: unique; it says nothing about the label.
        labels: what the label table says of it, one cell per column of the data set.
        case: the patient; slides of one case draw from the same images.
        features_ND: float16, N x D.
        instance_labels_N: uint8, 0 for a negative instance; DATA_CARD.md explains the others.
        log_hazard: what the time was drawn from, if there is one.
    """

    name: str
    labels: tuple[str, ...]
    case: str
    features_ND: np.ndarray
    instance_labels_N: np.ndarray
    log_hazard: float = 0.0

    @property
    def label(self) -> str:
        """The name of its class or grade, or the first of its targets."""
        return self.labels[0]


@dataclass(frozen=True)
class DataSet:
    """How one embedded data set is made.

    Attributes:
        classes: class names, the negative one first, or grades in ascending order; empty if there are
            targets.
        description: one line, kept in the shards' manifest.
        synthetic: whether its instances are synthetic.
        scale: default bag size relative to CAMELYON16's.
        draw: yields the slides, from a generator and a scale.
        task: what the labels mean.
    """

    classes: tuple[str, ...]
    description: str
    synthetic: bool
    scale: float
    draw: Callable[[np.random.Generator, float], Iterator[Slide]]
    task: TaskInfo = CLASSIFICATION

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the label table that say the label."""
        return self.task.columns or ("label",)


def c16_facts() -> dict[str, Any]:
    """CAMELYON16's observed bag sizes, tumour fractions and number of slides per class."""
    facts: dict[str, Any] = json.loads(Path(__file__).parent.with_name("c16_facts.json").read_text())
    return facts


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 1,797 digits averaged to 4 x 4 pixels, so that some are hard to tell apart.

    Returns:
        Features, float16, I x 16, in [-1, 1] and exact; digits, int64, I.
    """
    pixels_ID, digits_I = load_digits(return_X_y=True)
    blocks_ID = pixels_ID.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    return (blocks_ID / 8 - 1).astype(np.float16), digits_I


def deal(rng: np.random.Generator, digits_I: np.ndarray, cases_of_digit: list[np.ndarray]) -> np.ndarray:
    """Deal the images out to the cases; no two cases share an image.

    Args:
        rng: source of the order.
        digits_I: the digit of each image.
        cases_of_digit: for each digit, the cases among which its images are divided as evenly as possible.

    Returns:
        The case of each image, int64, I.
    """
    case_I = np.empty(len(digits_I), np.int64)
    for digit, cases in enumerate(cases_of_digit):
        images_K = rng.permutation(np.flatnonzero(digits_I == digit))
        case_I[images_K] = np.resize(rng.permutation(cases), len(images_K))
    return case_I


def draw_bag(
    rng: np.random.Generator, positives_K: np.ndarray, negatives_K: np.ndarray, num_positives: int, size: int
) -> np.ndarray:
    """Draw a bag's images, with repetition, in random order: int64, N."""
    positives = rng.choice(positives_K, num_positives)
    negatives = rng.choice(negatives_K, size - num_positives)
    return rng.permutation(np.concatenate([positives, negatives]))
