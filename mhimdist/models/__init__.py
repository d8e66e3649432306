"""The bag models; `build` makes the model that the settings name."""

import torch
from torch import nn

from mhimdist.config import models as model_settings
from mhimdist.config.settings import ModelExtension
from mhimdist.models import extension
from mhimdist.models.abmil import AttentionMIL
from mhimdist.models.clam import CLAM, check_clam
from mhimdist.models.dsmil import DSMIL
from mhimdist.models.dtfd import DTFD
from mhimdist.models.interface import BagModel, BagOutput
from mhimdist.models.pooling import PoolingMIL
from mhimdist.models.transmil import TransMIL
from mhimdist.ops.draws import weight_seed
from mhimdist.tasks import Task, classification

__all__ = ["BagModel", "BagOutput", "build", "check_model"]


def build(
    settings: model_settings.ModelSettings,
    *,
    num_features: int,
    seed: int,
    task: Task | None = None,
    num_classes: int | None = None,
) -> BagModel:
    """Build a model in float32 on the CPU, with weights drawn from `seed`; no global generator is touched.

    Args:
        settings: the settings of the model; their type selects the model.
        num_features: width of an instance's features.
        seed: the run's seed.
        task: what the network shall predict.
        num_classes: in place of a task: classification of so many classes.

    Raises:
        ConfigError: the model is not defined for the task.
        ExtensionError: another package adds the model, and its network cannot be used.
    """
    if task is None:
        assert num_classes is not None, "a network needs a task, or the number of classes"
        task = classification(num_classes)
    num_outputs = task.num_outputs
    check_model(settings, task)
    with torch.device("meta"):
        match settings:
            case model_settings.AttentionMIL():
                model: BagModel = AttentionMIL(settings, num_features, num_outputs)
            case model_settings.DSMIL():
                model = DSMIL(settings, num_features, num_outputs)
            case model_settings.TransMIL():
                model = TransMIL(settings, num_features, num_outputs)
            case model_settings.CLAM():
                model = CLAM(settings, num_features, num_outputs, num_classes=len(task.classes))
            case model_settings.DTFD():
                model = DTFD(settings, num_features, num_outputs)
            case model_settings.Pooling():
                model = PoolingMIL(settings, num_features, num_outputs)
            case _:
                model = extension.network_of(settings, num_features, num_outputs)
    _allocate(model)
    if isinstance(settings, ModelExtension):
        extension.mark_unset(model)
    model.initialize(torch.Generator().manual_seed(weight_seed(seed)))
    model.task = task
    if len(values := task.first_values()):
        model.task_values = nn.Parameter(torch.tensor(values))
    if isinstance(settings, ModelExtension):
        extension.check(model, settings, num_features, num_outputs)
    return model


def _allocate(model: BagModel) -> None:
    """Give a network's tensors memory on the CPU; for that, `to_empty` would import sympy: .4 s."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(values, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def check_model(settings: model_settings.ModelSettings, task: Task) -> None:
    """Check that a model is defined for a task.

    Raises:
        ConfigError: it is not, as CLAM without classes.
    """
    if isinstance(settings, model_settings.CLAM):
        check_clam(settings, task)
