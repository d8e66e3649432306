"""Survival: a bag has a time, and whether the event happened then or the bag was last seen then.

Dimensions: B bags of a batch, N bags of a set, J bins of time, I edges between bins (J - 1).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mhimdist.config.tasks import SurvivalTask
from mhimdist.statistics import survival
from mhimdist.statistics.bootstrap import Weighed
from mhimdist.tasks.interface import Fitted, Judged, Others, Task, Truth

MOST_LOG_HAZARD = 500.0
"""Larger log hazards count as this one, whose exponential float64 still holds."""


class Survival(Task):
    """The likelihood of the bin of a time, or Cox's partial likelihood; the concordance index selects."""

    name = "survival"
    selection = "harrell_c"
    pools = False  # each network counts risk from a place of its own
    fits_by = "the median risk"
    page = "mhimdist.pages.tasks.built_in:SurvivalPage"
    headings: ClassVar[Mapping[str, str]] = {
        "harrell_c": "C-index",
        "uno_c": "Uno's C",
        "dynamic_auc": "AUC over time",
        "ibs": "Brier (IBS)",
    }
    settings: SurvivalTask

    @property
    def _is_cox(self) -> bool:
        return self.settings.survival_loss == "cox"

    @property
    def num_outputs(self) -> int:
        """See `Task.num_outputs`: the hazard's logit in each bin, or one log hazard."""
        return 1 if self._is_cox else self.settings.num_bins

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Task.columns`: the risk, and for bins the probability to live longer than each."""
        return ("risk", *(() if self._is_cox else (f"survival_{j + 1}" for j in range(self.num_outputs))))

    @property
    def compares_with(self) -> Literal["nothing", "step", "memory"]:
        """See `Task.compares_with`: the risk set of Cox's partial likelihood."""
        return self.settings.risk_set if self._is_cox else "nothing"

    def learn(self, labels_N: np.ndarray, targets_NK: np.ndarray) -> dict[str, Any]:
        """See `Task.learn`: edges between the bins, times to look at, and the steps of the censoring.

        A run's files hold what was learnt, so the times of single bags and who had an event are not in it.
        """
        times_N, events_N = targets_NK[:, 0], targets_NK[:, 1] == 1
        inner = np.arange(1, self.settings.num_bins) / self.settings.num_bins
        free = survival.censoring(times_N, events_N).steps
        return {
            "edges": np.quantile(times_N[events_N], inner).tolist(),
            "last": float(times_N.max()),
            "grid": survival.grid(times_N, events_N).tolist(),
            "uncensored": {"times": free.times_U.tolist(), "shares": free.free_U.tolist()},
        }

    @property
    def censoring(self) -> survival.Censoring | None:
        """How likely it is not to be censored, by the training bags; None if nothing was learnt."""
        if (steps := self.learnt.get("uncensored")) is None:
            return None
        return survival.Censoring(np.array(steps["times"], float), np.array(steps["shares"], float))

    def loss(self, outputs_BO: Tensor, truth: Truth, values_V: Tensor | None) -> Tensor:
        """See `Task.loss`, `binned_loss` and `cox_loss`; without others to compare with, Cox's is 0."""
        if self._is_cox:
            log_hazards_B = outputs_BO.squeeze(1)
            return log_hazards_B * 0 if truth.others is None else cox_loss(log_hazards_B, truth.others)
        times_B, events_B = truth.targets.unbind(1)
        # Edges are compared one by one: a tensor of them would be a copy that waits for the device.
        bins_B = torch.stack([times_B >= edge for edge in self._edges]).sum(0)
        return binned_loss(outputs_BO, bins_B, events_B, self.settings.event_weight)

    def predict(self, outputs_BO: Tensor, values_V: Tensor | None) -> Tensor:
        """See `Task.predict`: the log hazard; or minus the sum of the survival, and the survival."""
        if self._is_cox:
            return outputs_BO
        survival_BJ = functional.logsigmoid(-outputs_BO).cumsum(1).exp()
        return torch.cat([-survival_BJ.sum(1, keepdim=True), survival_BJ], 1)

    @property
    def _edges(self) -> list[float]:
        return list(self.learnt.get("edges", range(1, self.settings.num_bins)))

    @property
    def times(self) -> list[float]:
        """The time of each column of survival."""
        return [*self._edges, float(self.learnt.get("last", self.settings.num_bins))]

    def aligned(self, predictions_NP: np.ndarray, other: Task) -> np.ndarray:
        """See `Task.aligned`: the survival at the other's times, straight between this one's times."""
        if self._is_cox or not isinstance(other, Survival) or other.times == self.times:
            return predictions_NP
        own = [0.0, *self.times]
        at_NJ = np.stack([np.interp(other.times, own, [1.0, *row_J]) for row_J in predictions_NP[:, 1:]])
        return np.concatenate([-at_NJ.sum(1, keepdims=True), at_NJ], axis=1)

    def of_case(self, predictions_SMP: np.ndarray, how: Literal["mean", "max"]) -> np.ndarray:
        """See `Task.of_case`; "max" is the slide of the highest risk, for each network."""
        if how == "mean":
            return predictions_SMP.mean(0)
        return predictions_SMP[predictions_SMP[..., 0].argmax(0), np.arange(predictions_SMP.shape[1])]

    def fit(self, judged: Judged) -> dict[str, Any]:
        """See `Task.fit`: the median risk, which divides low from high, and of Cox the baseline hazard.

        Of bins also the predictions of the bag of median risk, or the mean of the two in the middle, from
        which the median follows at the times of another network.
        """
        (times_N, events_N), risks_N = judged.targets_NK.T, judged.predictions_NP[:, 0]
        found: dict[str, Any] = {"median_risk": float(np.median(risks_N))}
        if self._is_cox:
            found["baseline"] = breslow(times_N, events_N, risks_N, self._grid_T).tolist()
        else:
            middle = np.argsort(risks_N, kind="stable")[(len(risks_N) - 1) // 2 : len(risks_N) // 2 + 1]
            found["median_bag"] = judged.predictions_NP[middle].mean(0).tolist()
        return found

    def fitted_as(self, fitted: Fitted, other: Task) -> Fitted:
        """See `Task.fitted_as`: the median risk by the other's bins; of Cox the baseline at its times."""
        if not isinstance(other, Survival):
            return fitted
        if "baseline" in fitted:
            own, values = [0.0, *self._grid_T], [0.0, *fitted["baseline"]]
            return {**fitted, "baseline": np.interp(other._grid_T, own, values).tolist()}
        if "median_bag" not in fitted:
            return fitted
        bag_P = self.aligned(np.array([fitted["median_bag"]]), other)[0]
        return {**fitted, "median_bag": bag_P.tolist(), "median_risk": float(bag_P[0])}

    def decide(self, predictions_NP: np.ndarray, fitted: Fitted) -> list[str] | None:
        """See `Task.decide`: above the median risk of the bags that selected."""
        if (median := fitted.get("median_risk")) is None:
            return None
        return ["high risk" if risk > median else "low risk" for risk in predictions_NP[:, 0].tolist()]

    def weighed(self, judged: Judged, fitted: Fitted) -> Weighed:
        """See `Task.weighed` and `statistics.survival.measures`.

        Uno's weights are of the training bags' censoring; of these bags' own where those are not known.
        """
        times_N, events_N = judged.targets_NK.T
        return survival.weighed(
            times_N,
            events_N,
            judged.predictions_NP[:, 0],
            judged.cases,
            free=self.censoring or survival.censoring(times_N, events_N),
            grid_T=self._grid_T,
            survival_NT=self.survival_at_grid(judged.predictions_NP, fitted),
        )

    @property
    def _grid_T(self) -> np.ndarray:
        return np.array(self.learnt.get("grid", self.times), dtype=np.float64)

    def survival_at_grid(self, predictions_NP: np.ndarray, fitted: Fitted) -> np.ndarray | None:
        """The predicted probability of no event until each time of the grid, N x T.

        Of bins it goes straight between their ends; of Cox it follows from the fitted baseline hazard, and is
        None where nothing was fitted.
        """
        if self._is_cox and "baseline" not in fitted:
            return None
        if self._is_cox:
            hazards_N1 = np.exp(np.minimum(predictions_NP[:, :1], MOST_LOG_HAZARD))
            return np.exp(-hazards_N1 * np.array(fitted["baseline"]))
        own = [0.0, *self.times]
        rows = [np.interp(self._grid_T, own, [1.0, *row_J]) for row_J in predictions_NP[:, 1:]]
        return np.stack(rows).clip(0, 1)

    def score(self, judged: Judged) -> float | None:
        """See `Task.score`: Harrell's concordance index."""
        times_N, events_N = judged.targets_NK.T
        return survival.measures(
            times_N,
            events_N,
            judged.predictions_NP[:, 0],
            train_times=times_N,
            train_events=events_N,
            grid_T=np.zeros(0),
        )[self.selection]

    def total_loss(self, judged: Judged, losses_N: np.ndarray) -> float:
        """See `Task.total_loss`; of Cox the partial likelihood among the set's own bags."""
        if not self._is_cox:
            return super().total_loss(judged, losses_N)
        risks_N = torch.from_numpy(judged.predictions_NP[:, 0])
        others = Others.of_step(torch.from_numpy(judged.targets_NK), risks_N[:, None])
        return float(cox_loss(risks_N, others).mean())

    def fault(self, judged: Judged, is_train: bool) -> str | None:
        """See `Task.fault`: an event, and a bag that was seen for longer."""
        times_N, events_N = judged.targets_NK.T
        if not (events_N == 1).any():
            what = "nothing can be learnt" if is_train else "no pair can be compared"
            return f"no event among {len(events_N)} bags, all are censored: {what}; give another split"
        if not times_N[events_N == 1].min() < times_N.max():
            return (
                "no bag was seen for longer than one with an event, so no pair can be compared; give another "
                "split"
            )
        return None


def breslow(times_N: np.ndarray, events_N: np.ndarray, risks_N: np.ndarray, grid_T: np.ndarray) -> np.ndarray:
    """The cumulative hazard of a bag with a log hazard of 0 until each time (Breslow 1972), shape T.

    Args:
        times_N, events_N: the bags that it is fitted on.
        risks_N: their log hazards.
        grid_T: the times.
    """
    hazards_N = np.exp(np.minimum(risks_N, MOST_LOG_HAZARD))
    at_risk_N = (hazards_N * (times_N >= times_N[:, None])).sum(1)
    steps_N = np.divide(events_N == 1, at_risk_N)
    return ((times_N[:, None] <= grid_T) * steps_N[:, None]).sum(0)


def binned_loss(logits_BJ: Tensor, bins_B: Tensor, events_B: Tensor, event_weight: float) -> Tensor:
    """The negative log likelihood of each bag's bin of time, shape B (Zadeh and Schmid 2020).

    With the hazard h_j = sigmoid(logit_j) and the survival S_j = prod_{i <= j} (1 - h_i), a bag with an event
    in bin y has the likelihood h_y S_{y-1}, and one last seen there S_y.

    Args:
        logits_BJ: logits of the hazards.
        bins_B: int64 bin of each time.
        events_B: 1 for an event, 0 for a bag that was last seen.
        event_weight: w of (1 - w) (all bags) + w (bags with an event).
    """
    bin_B1 = bins_B[:, None]
    log_survival_BJ = functional.logsigmoid(-logits_BJ).cumsum(1)
    before_BJ = torch.cat([torch.zeros_like(log_survival_BJ[:, :1]), log_survival_BJ[:, :-1]], 1)
    log_hazard_BJ = functional.logsigmoid(logits_BJ)
    with_event_B = -(before_BJ + log_hazard_BJ).gather(1, bin_B1).squeeze(1)
    without_B = -log_survival_BJ.gather(1, bin_B1).squeeze(1)
    return torch.where(events_B == 1, with_event_B, (1 - event_weight) * without_B)


def cox_loss(log_hazards_B: Tensor, others: Others) -> Tensor:
    """Cox's partial likelihood, a bag at a time: shape B; bags of equal times as Breslow has them.

    The loss of a bag with an event is log sum_{j in R} exp(r_j) - r, with R the bags that were seen at least
    as long; of a bag without one it is 0. Its gradient, however, is that of the whole set's loss to the bag's
    own r, as it also stands in the risk sets of others: exp(r) sum_i 1 / S_i - event, over the events i up to
    its time, with S_i the sum over the risk set of i. So the gradients of all bags, one step each, add up to
    that of the whole set, as far as the others' scores are of today.

    Args:
        log_hazards_B: r of each bag.
        others: the set, with the bags in it. Bags without a prediction are in no risk set.
    """
    times_N, events_N = others.targets_NK.double().T.contiguous()
    scores_N = others.predictions_NP[:, 0].double()
    own_BN = others.rows_B[:, None] == torch.arange(len(scores_N), device=scores_N.device)
    risk_B = log_hazards_B.detach().double()
    known_N = torch.where(scores_N.isnan(), -torch.inf, scores_N)
    scores_BN = torch.where(own_BN, risk_B[:, None], known_N)
    is_event_BN = (events_N == 1) & (scores_BN > -torch.inf)
    # The risk set of a time begins with the first bag of that time.
    first_N = torch.searchsorted(times_N, times_N)
    log_sums_BN = scores_BN.flip(1).logcumsumexp(1).flip(1)[:, first_N]
    own_time_B1 = times_N[others.rows_B][:, None]
    shares_BN = torch.where(is_event_BN & (times_N <= own_time_B1), (risk_B[:, None] - log_sums_BN).exp(), 0)
    event_B = events_N[others.rows_B]
    gradient_B = shares_BN.sum(1) - event_B
    loss_B = event_B * (log_sums_BN.gather(1, others.rows_B[:, None]).squeeze(1) - risk_B)
    live_B = gradient_B.to(log_hazards_B.dtype) * (log_hazards_B - log_hazards_B.detach())
    return loss_B.to(log_hazards_B.dtype) + live_B
