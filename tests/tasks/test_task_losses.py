"""The tasks' losses against references and hand-worked values, and their gradients."""

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from sksurv.linear_model import CoxPHSurvivalAnalysis
from task_bags import INFOS
from torch.nn import functional

from mhimdist.config import tasks as settings
from mhimdist.tasks import Task, Truth, _make
from mhimdist.tasks.interface import Judged, Others
from mhimdist.tasks.survival import binned_loss, breslow, cox_loss

pytestmark = pytest.mark.numeric


def _task(name: str, learnt: dict | None = None, classes: int = 4, **options: object) -> Task:
    kinds = {
        "ordinal": settings.OrdinalTask,
        "multilabel": settings.MultilabelTask,
        "regression": settings.RegressionTask,
        "survival": settings.SurvivalTask,
    }
    return _make(INFOS[name], [str(c) for c in range(classes)], kinds[name](**options), learnt)


def _outputs(num_bags: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_bags, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _checked(task: Task, outputs_BO: torch.Tensor, truth: Truth) -> torch.Tensor:
    """The losses of a task, after a check of their gradients in float64."""
    values_V = torch.tensor(task.first_values(), dtype=torch.float64) if len(task.first_values()) else None
    inputs = [outputs_BO.clone().requires_grad_()]
    if values_V is not None:
        inputs.append(values_V.requires_grad_())
    assert torch.autograd.gradcheck(lambda o, v=None: task.loss(o, truth, v), inputs)
    return task.loss(outputs_BO, truth, values_V).detach()


def _published_corn(logits: torch.Tensor, y_train: torch.Tensor, num_classes: int) -> torch.Tensor:
    """`corn_loss` of coral-pytorch 1.4, term by term."""
    sets = []
    for i in range(num_classes - 1):
        label_mask = y_train > i - 1
        label_tensor = (y_train[label_mask] > i).to(torch.int64)
        sets.append((label_mask, label_tensor))
    num_examples, losses = 0, 0.0
    for task_index, (train_examples, train_labels) in enumerate(sets):
        if len(train_labels) < 1:
            continue
        num_examples += len(train_labels)
        pred = logits[train_examples, task_index]
        losses += -torch.sum(
            functional.logsigmoid(pred) * train_labels
            + (functional.logsigmoid(pred) - pred) * (1 - train_labels)
        )
    return losses / num_examples


def test_corn_is_the_published_loss_up_to_the_number_of_terms():
    labels_B = torch.tensor([0, 3, 1, 2, 0, 3])
    outputs_BO = _outputs(6, 3)
    loss_B = _checked(_task("ordinal"), outputs_BO, Truth(labels_B))
    # A bag of grade g reaches min(g + 1, 3) steps.
    num_terms = (labels_B + 1).clamp(max=3).sum()
    published = _published_corn(outputs_BO, labels_B, 4)
    torch.testing.assert_close(loss_B.sum() * 3 / num_terms, published, atol=1e-6, rtol=0)


def test_corn_multiplies_the_conditional_probabilities():
    outputs_BO = _outputs(5, 3)
    above = torch.sigmoid(outputs_BO)
    one = above[:, 0]
    expected = torch.stack(
        [1 - one, one * (1 - above[:, 1]), one * above[:, 1] * (1 - above[:, 2]), above.prod(1)], 1
    )
    torch.testing.assert_close(_task("ordinal").predict(outputs_BO, None), expected)


def test_the_cumulative_link_is_the_proportional_odds_model():
    labels_N = np.array([0, 0, 1, 2, 2, 2, 3, 3])
    plain = _task("ordinal", ordinal_loss="cumulative")
    task = _task("ordinal", plain.learn(labels_N, np.zeros((8, 0))), ordinal_loss="cumulative")
    labels_B, outputs_B1 = torch.from_numpy(labels_N), _outputs(8, 1)
    loss_B = _checked(task, outputs_B1, Truth(labels_B))
    # The first cut points reproduce the shares of the grades at a score of 0: 2, 1, 3 and 2 of 8.
    values_V = torch.tensor(task.first_values(), dtype=torch.float64)
    shares = task.predict(torch.zeros(1, 1, dtype=torch.float64), values_V)
    torch.testing.assert_close(shares[0], torch.tensor([2, 1, 3, 2]).double() / 8, atol=1e-6, rtol=0)
    cuts = np.log([2 / 6, 3 / 5, 6 / 2])
    below = 1 / (1 + np.exp(-(cuts - outputs_B1.numpy())))
    padded = np.concatenate([np.zeros((8, 1)), below, np.ones((8, 1))], 1)
    expected = -np.log(np.diff(padded, axis=1)[np.arange(8), labels_N])
    np.testing.assert_allclose(loss_B.numpy(), expected, atol=1e-6)


def test_a_class_weight_multiplies_the_loss_of_its_grade():
    labels_B, weights_C = torch.tensor([0, 2, 3]), torch.tensor([1.0, 1.0, 5.0, 0.5], dtype=torch.float64)
    task, outputs_BO = _task("ordinal"), _outputs(3, 3)
    plain_B = task.loss(outputs_BO, Truth(labels_B), None)
    weighed_B = _checked(task, outputs_BO, Truth(labels_B, class_weights_C=weights_C))
    torch.testing.assert_close(weighed_B, plain_B * torch.tensor([1.0, 5.0, 0.5]))


def test_unknown_labels_are_masked():
    targets_BK = torch.tensor([[1.0, 0.0], [torch.nan, 1.0], [torch.nan, torch.nan]], dtype=torch.float64)
    outputs_BO = _outputs(3, 2)
    loss_B = _checked(_task("multilabel"), outputs_BO, Truth(torch.zeros(3, dtype=torch.int64), targets_BK))
    both = functional.binary_cross_entropy_with_logits(outputs_BO[0], targets_BK[0])
    one = functional.binary_cross_entropy_with_logits(outputs_BO[1, 1], targets_BK[1, 1])
    torch.testing.assert_close(loss_B, torch.stack([both, one / 2, both * 0]), atol=1e-6, rtol=0)


def test_regression_is_the_huber_loss_of_standardised_targets():
    targets_NK = np.array([[100.0, 3.0], [104.0, 5.0], [90.0, 4.0]])
    task = _task("regression", huber_delta=0.7)
    task = _task("regression", task.learn(np.zeros(3), targets_NK), huber_delta=0.7)
    outputs_BO = _outputs(3, 2) * 2
    truth = Truth(torch.zeros(3, dtype=torch.int64), torch.from_numpy(targets_NK))
    standard = torch.from_numpy((targets_NK - targets_NK.mean(0)) / targets_NK.std(0))
    expected_B = functional.huber_loss(outputs_BO, standard, delta=0.7, reduction="none").mean(1)
    torch.testing.assert_close(_checked(task, outputs_BO, truth), expected_B, atol=1e-6, rtol=0)
    torch.testing.assert_close(task.predict(standard, None), torch.from_numpy(targets_NK))


def _published_nll(h, y, c, alpha=0.0, eps=1e-7):
    """`nll_loss` of MCAT and of MHIM's second version; c is 1 for a censored bag."""
    y, c = y[:, None], c[:, None]
    hazards = torch.sigmoid(h)
    survival = torch.cumprod(1 - hazards, dim=1)
    padded = torch.cat([torch.ones_like(c), survival], 1)
    uncensored = -(1 - c) * (
        torch.log(torch.gather(padded, 1, y).clamp(min=eps))
        + torch.log(torch.gather(hazards, 1, y).clamp(min=eps))
    )
    censored = -c * torch.log(torch.gather(padded, 1, y + 1).clamp(min=eps))
    return ((1 - alpha) * (censored + uncensored) + alpha * uncensored).squeeze(1)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_binned_survival_is_the_published_likelihood(alpha: float):
    events_B, bins_B = torch.tensor([1.0, 0, 1, 0, 0]).double(), torch.tensor([0, 0, 3, 3, 2])
    outputs_BO = _outputs(5, 4)
    expected_B = _published_nll(outputs_BO, bins_B, 1 - events_B, alpha)
    loss_B = binned_loss(outputs_BO, bins_B, events_B, alpha)
    torch.testing.assert_close(loss_B, expected_B, atol=1e-6, rtol=0)
    times_B = torch.tensor([0.5, 0.9, 9.0, 4.0, 2.5])
    truth = Truth(bins_B, torch.stack([times_B, events_B], 1).double())
    task = _task("survival", {"edges": [1.0, 2.0, 4.0], "last": 9.0}, event_weight=alpha)
    torch.testing.assert_close(_checked(task, outputs_BO, truth), expected_B, atol=1e-6, rtol=0)


def test_bins_have_equally_many_events():
    times = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 20, 30])
    events = np.array([1.0] * 8 + [0, 0])
    learnt = _task("survival").learn(np.zeros(10), np.stack([times, events], 1))
    bins = np.digitize(times[:8], learnt["edges"])
    assert np.bincount(bins).tolist() == [2, 2, 2, 2]
    assert learnt["last"] == 30


def _cohort(seed: int = 0, num: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.permutation(num) + 1.0, (random.random(num) < 0.6).astype(float), random.normal(size=num)


def _cox(risks_N: torch.Tensor, times_N: np.ndarray, events_N: np.ndarray) -> torch.Tensor:
    targets = torch.from_numpy(np.stack([times_N, events_N], 1))
    return cox_loss(risks_N, Others.of_step(targets, risks_N[:, None]))


@pytest.mark.filterwarnings("ignore:.*pandas version 4")  # of lifelines
def test_cox_is_the_partial_likelihood_of_lifelines_and_its_gradient_vanishes_at_its_fit():
    times_N, events_N, x_N = _cohort(num=40)
    table = pd.DataFrame({"time": times_N, "event": events_N, "x": x_N})
    fitted = CoxPHFitter().fit(table, "time", "event")
    slope = torch.tensor(fitted.params_["x"], dtype=torch.float64, requires_grad=True)
    loss = _cox(slope * torch.from_numpy(x_N), times_N, events_N).sum()
    assert -loss.item() == pytest.approx(fitted.log_likelihood_, abs=1e-6)
    loss.backward()
    assert abs(slope.grad.item()) < 1e-6
    again = CoxPHSurvivalAnalysis(ties="breslow")
    survival = np.array(list(zip(events_N == 1, times_N, strict=True)), dtype=[("e", bool), ("t", float)])
    assert again.fit(x_N[:, None], survival).coef_[0] == pytest.approx(slope.item(), abs=1e-5)


def test_cox_breaks_ties_as_breslow_does():
    # Two events at time 1, then a censored bag: 2 log(e^0.5 + e^-1 + e^0.2) - (0.5 - 1), by hand.
    risks = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    loss = _cox(risks, np.array([1.0, 1, 2]), np.array([1.0, 1, 0])).sum().item()
    assert loss == pytest.approx(2 * np.log(np.exp(0.5) + np.exp(-1) + np.exp(0.2)) + 0.5, abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_the_gradients_of_single_bags_add_up_to_that_of_the_whole_set(ties: bool):
    times_N, events_N, x_N = _cohort(3)
    times_N = np.ceil(times_N / 3) if ties else times_N
    risks = torch.from_numpy(x_N).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: _cox(r, times_N, events_N).sum(), risks)
    # One bag at a time, with the scores of all others remembered.
    _cox(risks, times_N, events_N).sum().backward()
    targets = torch.from_numpy(np.stack([times_N, events_N], 1))
    whole = Others.of_step(targets, risks.detach()[:, None])
    for i in range(len(risks)):
        alone = torch.tensor([x_N[i]], dtype=torch.float64, requires_grad=True)
        cox_loss(alone, whole._replace(rows_B=whole.rows_B[i : i + 1])).sum().backward()
        torch.testing.assert_close(alone.grad[0], risks.grad[i])


def test_bags_without_a_prediction_are_in_no_risk_set():
    times_N, events_N, x_N = _cohort(5)
    known = np.arange(12) % 3 > 0
    fewer = _cox(torch.from_numpy(x_N[known]), times_N[known], events_N[known])
    targets = torch.from_numpy(np.stack([times_N, events_N], 1))
    scores = torch.from_numpy(np.where(known, x_N, np.nan))[:, None]
    some = Others.of_step(targets, scores)
    found = cox_loss(torch.from_numpy(x_N[known]), some._replace(rows_B=some.rows_B[torch.from_numpy(known)]))
    torch.testing.assert_close(found, fewer)


def test_huge_scores_stay_finite():
    loss = _cox(torch.tensor([800.0, -800.0, 799.0]), np.array([1.0, 2, 3]), np.array([1.0, 1, 0]))
    assert torch.isfinite(loss).all()


def test_the_baseline_is_that_of_scikit_survival():
    times_N, events_N, x_N = _cohort(7, num=30)
    survival = np.array(list(zip(events_N == 1, times_N, strict=True)), dtype=[("e", bool), ("t", float)])
    fitted = CoxPHSurvivalAnalysis(ties="breslow").fit(x_N[:, None], survival)
    grid = np.array([3.0, 11.5, 25.0])
    baseline = fitted.cum_baseline_hazard_
    ours = breslow(times_N, events_N, x_N * fitted.coef_[0], grid)
    np.testing.assert_allclose(ours, baseline(grid), atol=1e-6)


def test_the_median_risk_of_a_network_follows_to_the_bins_of_another():
    random = np.random.default_rng(0)
    own, other = (_task("survival", {"edges": edges, "last": 40.0}) for edges in ([4, 9, 20.0], [2, 8, 30.0]))
    survival_NJ = np.sort(random.uniform(size=(9, 4)), axis=1)[:, ::-1]
    predictions_NP = np.concatenate([-survival_NJ.sum(1, keepdims=True), survival_NJ], axis=1)
    judged = Judged.of(np.zeros(9), np.stack([random.uniform(1, 40, 9), np.ones(9)], 1), predictions_NP)
    fitted = own.fit(judged)
    assert own.fitted_as(fitted, own)["median_risk"] == pytest.approx(fitted["median_risk"])
    place = int(np.argsort(predictions_NP[:, 0])[4])
    moved = own.fitted_as(fitted, other)
    assert moved["median_risk"] == pytest.approx(own.aligned(predictions_NP, other)[place, 0])
    assert moved["median_risk"] != pytest.approx(fitted["median_risk"])
