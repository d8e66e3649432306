"""Networks of other packages: whether they keep the contract of `BagModel`, asked before any training.

Dimensions: T instances of a batch, B bags, M embeddings per bag, E embedding width, H heads of scores.
"""

from typing import Any

import torch

from mhimdist.config.models import EXTENSIONS
from mhimdist.config.settings import ModelExtension
from mhimdist.data.bags import PackedBags
from mhimdist.errors import ExtensionError
from mhimdist.models.interface import BagModel, BagOutput, Projection

_SIZES = (3, 1)
"""Instances of the two bags that a new network is tried with."""


def network_of(settings: Any, num_features: int, num_outputs: int) -> BagModel:
    """The network of a model that another package adds, without weights.

    Args:
        settings: its settings, a `ModelExtension`.
        num_features: D.
        num_outputs: number of outputs for a bag.

    Raises:
        ExtensionError: it cannot be made, or is no `BagModel`.
    """
    assert isinstance(settings, ModelExtension), "the other models are made in build"
    try:
        network = settings.network(num_features, num_outputs)
    except Exception as error:  # whatever the package does
        raise _refused(settings, f"network raised {type(error).__name__}: {error}") from error
    if not isinstance(network, BagModel):
        raise _refused(settings, f"network returned {type(network).__name__}, expected a BagModel")
    if not isinstance(getattr(network, "projection", None), Projection):
        raise _refused(
            settings,
            "expected a Projection of mhimdist.models.interface as its attribute projection, which the "
            "student can start from",
        )
    return network


def mark_unset(network: BagModel) -> None:
    """Fill all weights with NaN, so that `check` sees which ones `initialize` leaves out."""
    with torch.no_grad():
        for values in (*network.parameters(), *network.buffers()):
            if values.is_floating_point():
                values.fill_(torch.nan)


def check(network: BagModel, settings: ModelExtension, num_features: int, num_outputs: int) -> None:
    """Try a new network with two bags on the CPU.

    Args:
        network: the network, with its first weights and its task.
        settings: its settings.
        num_features, num_outputs: as for `network_of`.

    Raises:
        ExtensionError: a weight has no value, or an output has another shape than `BagOutput` says.
    """
    for name, values in (*network.named_parameters(), *network.named_buffers()):
        if not torch.isfinite(values).all():
            raise _refused(
                settings, f"initialize leaves {name} without a value; override it and draw from its generator"
            )
    generator = torch.Generator().manual_seed(0)
    bags = PackedBags.from_list([torch.randn(size, num_features, generator=generator) for size in _SIZES])
    try:
        with torch.no_grad():
            output = network(bags)
    except Exception as error:  # whatever the package does
        raise _refused(settings, f"forward raised {type(error).__name__}: {error}") from error
    if not isinstance(output, BagOutput):
        raise _refused(settings, f"forward returned {type(output).__name__}, expected a BagOutput")
    scores = output.scores_TH
    given = {
        "logits_BC": (tuple(output.logits_BC.shape), (len(_SIZES), num_outputs)),
        "embeddings_BME": (tuple(output.embeddings_BME.shape)[:1], (len(_SIZES),)),
        "embeddings_BME's number of axes": (output.embeddings_BME.ndim, 3),
        "scores_TH": (None if scores is None else tuple(scores.shape)[:1], (sum(_SIZES),)),
        "scores_TH's number of axes": (None if scores is None else scores.ndim, 2),
    }
    for name, (got, expected) in given.items():
        is_left_out = got is None and not settings.has_scores
        if got != expected and not is_left_out:
            raise _refused(settings, f"{name}: expected {expected} for bags of {_SIZES} instances, got {got}")


def _refused(settings: Any, reason: str) -> ExtensionError:
    package, version = EXTENSIONS.packages.get(settings.name, ("unknown", ""))
    return ExtensionError(
        f"the model {settings.name} of the package {package} {version} is refused: {reason}"
    )
