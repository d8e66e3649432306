"""How well probabilities agree with frequencies: Brier score, ECE, reliability, temperature scaling.

Dimensions: N bags, C classes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mhimdist.errors import UndefinedError
from mhimdist.statistics.results import check, quantile

Binning = Literal["equal_width", "equal_mass"]
TEMPERATURES = (0.02, 50.0)
"""The range in which a temperature is looked for."""
_LEAST_PROBABILITY = 1e-12


def brier(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> float:
    """The Brier score: the mean squared error of the probabilities; 0 is best.

    Two classes: of the second class's probability, in [0, 1]. More: summed over the classes, in [0, 2], which
    is Brier's (1950) own form.

    Raises:
        UndefinedError: there is no bag, or a probability is not finite.
    """
    check(labels_N, probabilities_NC)
    missed_NC = probabilities_NC - np.eye(probabilities_NC.shape[1])[labels_N]
    if probabilities_NC.shape[1] == 2:
        missed_NC = missed_NC[:, 1:]
    return float((missed_NC**2).sum(axis=1).mean())


@dataclass(frozen=True)
class ReliabilityBin:
    """The bags whose probability lies in one range.

    Attributes:
        low, high: the range of probabilities.
        count: number of bags.
        confidence: their mean probability.
        frequency: the share of them for which the event came true.
        frequency_low, frequency_high: Wilson's interval of the frequency.
    """

    low: float
    high: float
    count: int
    confidence: float
    frequency: float
    frequency_low: float
    frequency_high: float


def reliability(
    labels_N: np.ndarray,
    probabilities_NC: np.ndarray,
    *,
    num_bins: int = 10,
    binning: Binning = "equal_width",
    level: float = 0.95,
) -> list[ReliabilityBin]:
    """The points of a reliability diagram; empty bins are left out.

    Two classes: the event is that the bag is of the second class. More: the event is that the most probable
    class is the right one (Guo et al., 2017).

    Args:
        labels_N: int64 class indices.
        probabilities_NC: class probabilities.
        num_bins: number of bins, at least 1.
        binning: "equal_width" divides [0, 1] evenly; "equal_mass" gives every bin as many bags. Equal
            probabilities stay in one bin.
        level: confidence level of the frequencies' intervals, in (0, 1).

    Raises:
        UndefinedError: there is no bag, a probability is outside [0, 1] or not finite, or there is no bin.
    """
    check(labels_N, probabilities_NC)
    if num_bins < 1:
        raise UndefinedError(f"expected at least one bin, got {num_bins}")
    if probabilities_NC.min() < 0 or probabilities_NC.max() > 1:
        raise UndefinedError(
            f"expected probabilities in [0, 1], got {probabilities_NC.min()} to {probabilities_NC.max()}"
        )
    if probabilities_NC.shape[1] == 2:
        probability_N, event_N = probabilities_NC[:, 1], labels_N == 1
    else:
        probability_N, event_N = probabilities_NC.max(axis=1), probabilities_NC.argmax(axis=1) == labels_N
    edges = np.linspace(0, 1, num_bins + 1)
    if binning == "equal_mass":
        edges = np.unique(np.quantile(probability_N, edges))
    # A bin includes its upper edge; the first one includes its lower edge, too.
    bin_N = np.clip(np.searchsorted(edges, probability_N, side="left") - 1, 0, max(len(edges) - 2, 0))
    found = []
    for i in np.unique(bin_N):
        inside = bin_N == i
        frequency, count = float(event_N[inside].mean()), int(inside.sum())
        low, high = wilson(frequency, count, level)
        ends = float(edges[i]), float(edges[min(i + 1, len(edges) - 1)])
        mean = float(probability_N[inside].mean())
        found.append(ReliabilityBin(*ends, count, mean, frequency, low, high))
    return found


def ece(
    labels_N: np.ndarray,
    probabilities_NC: np.ndarray,
    *,
    num_bins: int = 10,
    binning: Binning = "equal_width",
) -> float:
    """Expected calibration error: the mean gap between probability and frequency over the bins, by count.

    It depends on the number of bins and on the binning, so a report must say both.

    Args:
        labels_N, probabilities_NC, num_bins, binning: as in `reliability`.

    Raises:
        UndefinedError: see `reliability`.
    """
    bins = reliability(labels_N, probabilities_NC, num_bins=num_bins, binning=binning)
    return sum(each.count * abs(each.confidence - each.frequency) for each in bins) / len(labels_N)


def wilson(frequency: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) interval of a frequency among a number of independent bags, at least 1."""
    z = quantile(level)
    centre = frequency + z**2 / (2 * count)
    reach = z * np.sqrt(frequency * (1 - frequency) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, float((centre - reach) / scale)), min(1.0, float((centre + reach) / scale))


def negative_log_likelihood(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels, in nats; a probability counts as at least 1e-12.

    Raises:
        UndefinedError: there is no bag, or a probability is not finite.
    """
    check(labels_N, probabilities_NC)
    of_label_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return float(-np.log(np.maximum(of_label_N, _LEAST_PROBABILITY)).mean())


def scale_by_temperature(probabilities_NC: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of log probabilities / temperature: above 1 it makes them less extreme; the order stays.

    Args:
        probabilities_NC: class probabilities, such as those of a softmax.
        temperature: above 0; 1 changes nothing.

    Returns:
        float64, shape (N, C).

    Raises:
        UndefinedError: the temperature is not above 0.
    """
    from scipy.special import softmax

    if not temperature > 0:
        raise UndefinedError(f"expected a temperature above 0, got {temperature}")
    return softmax(np.log(np.maximum(probabilities_NC, _LEAST_PROBABILITY)) / temperature, axis=1)


def fit_temperature(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood (Guo et al., 2017).

    Args:
        labels_N: int64 class indices of validation bags. Fitted on test bags, it would flatter the test.
        probabilities_NC: class probabilities of these bags.

    Raises:
        UndefinedError: there is no bag, a probability is not finite, or no temperature in `TEMPERATURES` is
            best: all bags are classified correctly, or the probabilities are worse than chance.
    """
    from scipy.optimize import minimize_scalar

    check(labels_N, probabilities_NC)
    low, high = np.log(TEMPERATURES)

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(
            labels_N, scale_by_temperature(probabilities_NC, np.exp(log_temperature))
        )

    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    for end, why in (
        (low, "all bags are classified correctly, so sharper is always better"),
        (high, "the probabilities say no more than chance, so flatter is always better"),
    ):
        if loss(end) <= best.fun + 1e-9:
            raise UndefinedError(f"no temperature from {TEMPERATURES[0]} to {TEMPERATURES[1]} is best: {why}")
    return float(np.exp(best.x))
