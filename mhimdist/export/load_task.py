"""What a network's outputs say of grades, labels, numbers and survival. Needs PyTorch, nothing else.

`load_model.py` uses this file for exports of tasks other than classification; keep the two together. It is
Apache-2.0, from mhimdist.

Dimensions: O outputs of a network, P predictions, V learnt values, J steps between grades or bins of time,
M networks. Other dimensions may come first.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Settings = dict[str, Any]
Predict = Callable[[Tensor, Settings, Tensor | None], Tensor]

LEAST_GAP = 1e-3
"""Least distance between two cut points of grades."""


def labels(outputs_O: Tensor, task: Settings, values_V: Tensor | None) -> Tensor:
    """The probability of each label."""
    return torch.sigmoid(outputs_O)


def numbers(outputs_O: Tensor, task: Settings, values_V: Tensor | None) -> Tensor:
    """The numbers in their unit, float64."""
    mean_K, std_K = (_like(outputs_O, task["learnt"][name]) for name in ("mean", "std"))
    return outputs_O.double() * std_K + mean_K


def grades(outputs_O: Tensor, task: Settings, values_V: Tensor | None) -> Tensor:
    """The probability of each grade."""
    if values_V is None:
        above_J = functional.logsigmoid(outputs_O).cumsum(-1).exp()
        one = torch.ones_like(above_J[..., :1])
        return torch.cat([one, above_J], -1) - torch.cat([above_J, torch.zeros_like(one)], -1)
    gaps = functional.softplus(values_V[1:]) + LEAST_GAP
    below_J = torch.cat([values_V[:1], gaps]).cumsum(0) - outputs_O
    low, high = below_J[..., :-1], below_J[..., 1:]
    # log(sigmoid(b) - sigmoid(a)) = logsigmoid(b) + logsigmoid(-a) + log(1 - exp(a - b))
    inner = functional.logsigmoid(high) + functional.logsigmoid(-low) + torch.log(-torch.expm1(low - high))
    first, last = functional.logsigmoid(below_J[..., :1]), functional.logsigmoid(-below_J[..., -1:])
    return torch.cat([first, inner, last], -1).exp()


def survival(outputs_O: Tensor, task: Settings, values_V: Tensor | None) -> Tensor:
    """The risk, and the survival beyond each bin; of Cox's model the risk, its log hazard, alone."""
    if task["settings"]["survival_loss"] == "cox":
        return outputs_O
    survival_J = functional.logsigmoid(-outputs_O).cumsum(-1).exp()
    return torch.cat([-survival_J.sum(-1, keepdim=True), survival_J], -1)


PREDICT: dict[str, Predict] = {
    "ordinal": grades,
    "multilabel": labels,
    "regression": numbers,
    "survival": survival,
}


def equip(network: nn.Module, header: Settings) -> None:
    """Make a network predict its task, in place of class probabilities.

    Args:
        network: the network, without its weights.
        header: what its file says of it.
    """
    task, predict = header["task"], PREDICT[header["task"]["settings"]["name"]]
    if task["settings"].get("ordinal_loss") == "cumulative":
        network.task_values = nn.Parameter(torch.empty(len(task["classes"]) - 1))
    # An own attribute of the object, which is found before the method of its class.
    vars(network)["average"] = average
    vars(network)["predict"] = lambda outputs_O: predict(
        outputs_O, task, network._parameters.get("task_values")
    )


def scale(header: Settings) -> Tensor:
    """What a difference of predictions is small against: the deviation of numbers, otherwise 1."""
    return torch.tensor(header["task"]["learnt"].get("std", [1.0]), dtype=torch.float64)


def average(predictions: list[Tensor], headers: list[Settings]) -> Tensor:
    """The mean of several networks' predictions, P.

    The bins of survival are of each network's own training bags: their survival is taken at the first one's
    times, straight between each one's own.

    Args:
        predictions: each network's, in the order of the headers.
        headers: what each file says.
    """
    times = [_times(header["task"]) for header in headers]
    aligned = [
        predictions_P if own is None or own == times[0] else _at(predictions_P, own, times[0] or own)
        for predictions_P, own in zip(predictions, times, strict=True)
    ]
    return torch.stack(aligned).mean(0)


def _times(task: Settings) -> list[float] | None:
    """The times of the columns of survival; None if there are none."""
    if "edges" not in task["learnt"] or task["settings"]["survival_loss"] == "cox":
        return None
    return [*task["learnt"]["edges"], task["learnt"]["last"]]


def _at(predictions_P: Tensor, own: list[float], wanted: list[float]) -> Tensor:
    """Risk and survival at other times, straight between the own ones, and as at the last after it."""
    own_J = _like(predictions_P, [0.0, *own])
    survival_J = torch.cat([predictions_P.new_ones(1), predictions_P[1:]]).double()
    wanted_J = _like(predictions_P, wanted).clamp(max=own[-1])
    after_J = torch.searchsorted(own_J, wanted_J).clamp(1, len(own))
    span_J = own_J[after_J] - own_J[after_J - 1]
    share_J = torch.where(span_J > 0, (wanted_J - own_J[after_J - 1]) / span_J.where(span_J > 0, 1.0), 1.0)
    at_J = torch.lerp(survival_J[after_J - 1], survival_J[after_J], share_J)
    return torch.cat([-at_J.sum()[None], at_J]).to(predictions_P.dtype)


def _like(tensor: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=tensor.device)
