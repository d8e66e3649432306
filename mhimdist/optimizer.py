"""The parameters of a network in one buffer, and Adam on them.

What goes through all parameters (the moving average, a cast to 16 bits) is then one operation, whatever their
number. The parameters themselves stay what they were, views with names and shapes, so that checkpoints, DDP
and everything else that looks at a network sees no difference.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mhimdist import config

ALIGNMENT = 64
"""Each parameter starts at a multiple of so many values: matrix products want aligned factors."""


class FlatParameters:
    """All parameters of a network as views of one contiguous float32 buffer.

    Attributes:
        values: the buffer; it has zeros between the parameters.
        masters: the parameters.
        names: of the parameters.
    """

    def __init__(self, network: nn.Module) -> None:
        """Move the network's parameters, all on one device and in float32, into a buffer of their own."""
        self.names, self.masters = map(list, zip(*network.named_parameters(), strict=True))
        self.shapes = [parameter.shape for parameter in self.masters]
        sizes = [-(-shape.numel() // ALIGNMENT) * ALIGNMENT for shape in self.shapes]
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.starts = starts[:-1]
        with torch.inference_mode(False), torch.no_grad():  # whoever asks first: the buffer is to be written
            self.values = torch.zeros(starts[-1], device=self.masters[0].device)
            for parameter, view in zip(self.masters, self.views(self.values), strict=True):
                parameter.data = view.copy_(parameter)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The parts of a buffer laid out as `values`, each in its parameter's shape."""
        return [
            buffer[start : start + shape.numel()].view(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]

    def is_current(self) -> bool:
        """Whether the network's parameters are still the views, not moved to another place since."""
        return all(
            parameter.data_ptr() == self.values.data_ptr() + 4 * start
            for parameter, start in zip(self.masters, self.starts, strict=True)
        )


def flat(network: nn.Module) -> FlatParameters:
    """The network's parameters in one buffer, moved there where they are not yet."""
    found = network.__dict__.get("_flat_parameters")
    if found is None or next(network.parameters()) is not found.masters[0] or not found.is_current():
        found = network.__dict__["_flat_parameters"] = FlatParameters(network)
    return found


def adam(parameters: Iterable[nn.Parameter], settings: config.Optimizer) -> torch.optim.Adam:
    """Adam as the settings ask for it, in one pass over parameters, gradients and moments."""
    return torch.optim.Adam(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
