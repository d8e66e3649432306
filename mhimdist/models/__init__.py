"""The bag models; `build` makes the model that the settings name."""

import torch

from mhimdist.config import models as model_settings
from mhimdist.models.abmil import AttentionMIL
from mhimdist.models.clam import CLAM
from mhimdist.models.dsmil import DSMIL
from mhimdist.models.dtfd import DTFD
from mhimdist.models.interface import BagModel, BagOutput
from mhimdist.models.pooling import PoolingMIL
from mhimdist.models.transmil import TransMIL
from mhimdist.ops.draws import weight_seed

__all__ = ["BagModel", "BagOutput", "build"]


def build(
    settings: model_settings.ModelSettings, *, num_features: int, num_classes: int, seed: int
) -> BagModel:
    """Build a model in float32 on the CPU, with weights drawn from `seed`; no global generator is touched.

    Args:
        settings: the settings of the model; their type selects the model.
        num_features: width of an instance's features.
        num_classes: number of classes of the bags' labels.
        seed: the run's seed.
    """
    with torch.device("meta"):
        match settings:
            case model_settings.AttentionMIL():
                model: BagModel = AttentionMIL(settings, num_features, num_classes)
            case model_settings.DSMIL():
                model = DSMIL(settings, num_features, num_classes)
            case model_settings.TransMIL():
                model = TransMIL(settings, num_features, num_classes)
            case model_settings.CLAM():
                model = CLAM(settings, num_features, num_classes)
            case model_settings.DTFD():
                model = DTFD(settings, num_features, num_classes)
            case model_settings.Pooling():
                model = PoolingMIL(settings, num_features, num_classes)
    model.to_empty(device="cpu")
    model.initialize(torch.Generator().manual_seed(weight_seed(seed)))
    return model
