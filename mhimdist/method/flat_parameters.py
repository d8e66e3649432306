"""The parameters of a network in one buffer, and Adam on them.

What goes through all parameters (the moving average, a cast to 16 bits) is then one operation, whatever their
number. The parameters themselves stay what they were, views with names and shapes, so that checkpoints, DDP
and everything else that looks at a network sees no difference.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mhimdist.config import train as config

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


def flatten_parameters(network: nn.Module) -> FlatParameters:
    """Move the network's parameters into one buffer, where they are not in one yet.

    They stay the same parameters at another place in memory, so that a CUDA graph or a view made before no
    longer sees them.
    """
    found = network.__dict__.get("_flat_parameters")
    if found is None or next(network.parameters()) is not found.masters[0] or not found.is_current():
        found = network.__dict__["_flat_parameters"] = FlatParameters(network)
    return found


class NamedAdam(torch.optim.Adam):
    """Adam in one pass over parameters, gradients and moments; its state goes by the parameters' names.

    Attributes:
        found_inf: on a device, not 0 where the next step may change neither weights nor moments.
    """

    found_inf: Tensor | None

    def __init__(self, network: nn.Module, settings: config.Optimizer) -> None:
        """Take all parameters of a network, to be trained as the settings ask for it."""
        super().__init__(
            network.named_parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def named_state(self) -> dict[str, Tensor]:
        """What is kept for each parameter, the kind of it before the parameter's name: "KIND.NAME"."""
        return {
            f"{kind}.{name}": value
            for name, parameter in self._named_parameters()
            for kind, value in self.state[parameter].items()
        }

    def load_named_state(self, saved: Mapping[str, Tensor]) -> None:
        """Take over what `named_state` gave; rates and other settings stay as they are.

        Raises:
            KeyError: some parameter lacks what others have.
        """
        kinds = dict.fromkeys(key.split(".", 1)[0] for key in saved)
        for name, parameter in self._named_parameters():
            self.state[parameter] = {kind: saved[f"{kind}.{name}"].to(parameter.device) for kind in kinds}

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for group in self.param_groups:
            yield from zip(group["param_names"], group["params"], strict=True)
