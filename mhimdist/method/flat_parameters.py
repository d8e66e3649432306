"""The parameters of a network in one buffer, their gradients in another, and Adam on them.

Work on all parameters (the moving average, a cast to 16 bits, the exchange of gradients between workers) is
then one operation, whatever their number. The parameters themselves keep their names and shapes as views of
the buffer, so checkpoints and everything else that looks at a network see no difference.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from mhimdist.config import train as config

ALIGNMENT = 64
"""Each parameter starts at a multiple of this many values: matrix products need aligned factors."""


class FlatParameters:
    """All parameters of a network as views of one contiguous float32 buffer.

    Attributes:
        values: the buffer; it has zeros between the parameters.
        masters: the parameters.
        names: the parameters' names, in the same order.
    """

    def __init__(self, network: nn.Module) -> None:
        """Move the network's parameters, all on one device and in float32, into a new buffer."""
        self.names, self.masters = map(list, zip(*network.named_parameters(), strict=True))
        self.shapes = [parameter.shape for parameter in self.masters]
        sizes = [-(-shape.numel() // ALIGNMENT) * ALIGNMENT for shape in self.shapes]
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.starts = starts[:-1]
        # The buffer must stay writable, even if the first caller is in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self.values = torch.zeros(starts[-1], device=self.masters[0].device)
            for parameter, view in zip(self.masters, self.views(self.values), strict=True):
                parameter.data = view.copy_(parameter)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The parts of a buffer that is laid out like `values`, each in its parameter's shape."""
        return [
            buffer[start : start + shape.numel()].view(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]

    def is_current(self) -> bool:
        """Whether the network's parameters are still the views and have not been moved elsewhere."""
        return all(
            parameter.data_ptr() == self.values.data_ptr() + 4 * start
            for parameter, start in zip(self.masters, self.starts, strict=True)
        )


def flatten_parameters(network: nn.Module) -> FlatParameters:
    """Move the network's parameters into one buffer, unless they already are in one.

    They stay the same parameters, but at another place in memory: a CUDA graph or a view made before no
    longer sees them.
    """
    found = network.__dict__.get("_flat_parameters")
    if found is None or next(network.parameters()) is not found.masters[0] or not found.is_current():
        found = network.__dict__["_flat_parameters"] = FlatParameters(network)
    return found


class Gradients:
    """The gradients of a worker's loss in one buffer, laid out like `FlatParameters`, and then the loss.

    One exchange therefore adds up everything that the workers of a run share. The memory stays the same in
    all steps.

    Attributes:
        shared: the buffer, float32.
        loss: the value after the gradients.
        news: the values after the loss, for whatever else the workers tell each other.
        own_loss: the loss of this worker alone, which no exchange changes.
    """

    def __init__(self, network: nn.Module, num_news: int = 0) -> None:
        """Make the buffer.

        Args:
            network: its parameters must stay in the buffer that they are in now.
            num_news: number of values after the loss.
        """
        self._parameters = flatten_parameters(network)
        values = self._parameters.values
        self.shared = values.new_zeros(len(values) + 1 + num_news)
        self.loss, self.own_loss = self.shared[len(values)], values.new_zeros(())
        self.news = self.shared[len(values) + 1 :]
        self._views = self._parameters.views(self.shared)

    def of(self, loss: Tensor) -> None:
        """Take the gradients of a loss, in place of those of the step before."""
        for parameter in self._parameters.masters:
            parameter.grad = None
        loss.backward()
        # Adding up in the buffer itself would be an operation per parameter.
        found = [parameter.grad for parameter in self._parameters.masters]
        value = loss.detach()
        torch._foreach_copy_([*self._views, self.loss, self.own_loss], [*found, value, value])
        self._attach()

    def clear(self) -> None:
        """Take the gradients of a worker that has no bag in a step: 0."""
        self.shared.zero_()
        self.own_loss.zero_()
        self._attach()

    def _attach(self) -> None:
        for parameter, view in zip(self._parameters.masters, self._views, strict=True):
            parameter.grad = view


class NamedAdam:
    """Adam in one pass over parameters, gradients and moments; the parameters' names key its state.

    It is the function behind `torch.optim.Adam`. That class imports PyTorch's compiler, for which every
    process that trains would take a second longer to start.

    Attributes:
        learning_rate: of the next steps; a tensor without dimensions if graphs that are recorded read it.
        found_inf: a tensor on the device, not 0 if the next step may change neither weights nor moments.
        epsilon: what is added to the root of the second moment.
        state: of each parameter, by its name; empty before the first step.
    """

    learning_rate: float | Tensor
    found_inf: Tensor | None
    epsilon = 1e-8

    def __init__(self, network: nn.Module, settings: config.Optimizer) -> None:
        """Take all parameters of a network, to train at the rate and weight decay of the settings."""
        self.learning_rate, self.found_inf = settings.learning_rate, None
        self._weight_decay = settings.weight_decay
        self._parameters: dict[str, Tensor] = dict(network.named_parameters())
        self.state: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        if not self.state:
            self.state = {name: _first_state(parameter) for name, parameter in self._parameters.items()}
        parameters, states = self._parameters.values(), self.state.values()
        adam(
            list(parameters),
            [parameter.grad for parameter in parameters],  # type: ignore[misc]  # none is missing
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.learning_rate,
            weight_decay=self._weight_decay,
            eps=self.epsilon,
            maximize=False,
            found_inf=self.found_inf,
        )

    def named_state(self) -> dict[str, Tensor]:
        """The state of each parameter under "KIND.NAME": the kind of value, then the parameter's name."""
        return {
            f"{kind}.{name}": value for name, state in self.state.items() for kind, value in state.items()
        }

    def load_named_state(self, saved: Mapping[str, Tensor]) -> None:
        """Restore the state that `named_state` returned; rates and other settings stay as they are.

        Raises:
            KeyError: a parameter lacks a kind of value that others have.
        """
        kinds = dict.fromkeys(key.split(".", 1)[0] for key in saved)
        self.state = {
            name: {kind: saved[f"{kind}.{name}"].to(parameter.device) for kind in kinds}
            for name, parameter in self._parameters.items()
            if kinds
        }


def _first_state(parameter: Tensor) -> dict[str, Tensor]:
    """Of a parameter that was never trained: how often it was, and its moments."""
    return {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
