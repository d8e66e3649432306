"""The bag models; `build` makes the one that the settings name."""

import torch

from mhimdist import config
from mhimdist.draws import weight_seed
from mhimdist.models.abmil import AttentionMIL
from mhimdist.models.interface import BagModel, BagOutput
from mhimdist.models.pooling import PoolingMIL

__all__ = ["BagModel", "BagOutput", "build"]


def build(settings: config.ModelSettings, *, num_features: int, num_classes: int, seed: int) -> BagModel:
    """A model with weights drawn from `seed`, in float32 on the CPU; no global generator is touched."""
    with torch.device("meta"):
        match settings:
            case config.AttentionMIL():
                model: BagModel = AttentionMIL(settings, num_features, num_classes)
            case config.Pooling():
                model = PoolingMIL(settings, num_features, num_classes)
    model.to_empty(device="cpu")
    model.initialize(torch.Generator().manual_seed(weight_seed(seed)))
    return model
