"""The numbers of a step that the host knows and the device works with: ratios, streams, rates.

They travel in one small tensor, by one copy that nothing waits for. Work that was recorded once, as a CUDA
graph, reads the new numbers from there: none of them may be an argument of a kernel's launch.

Dimensions: S streams, W words.
"""

import struct
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mhimdist import ops
from mhimdist.config.method import Masking
from mhimdist.method.masking import ratios_at
from mhimdist.ops.draws import Draws

_LAYOUT = struct.Struct(f"=4d{len(ops.STREAMS)}q2f")
_RATES = _LAYOUT.size // 4 - 2  # where the rates start, counted in float32 values


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of a step, as views of one tensor.

    Attributes:
        words_W: the tensor of all numbers, int64.
    """

    words_W: Tensor

    @classmethod
    def of(
        cls,
        masking: Masking,
        draws: Draws,
        progress: float,
        *,
        learning_rate: float = 0.0,
        teacher_share: float = 0.0,
    ) -> Self:
        """Pack the numbers on the CPU.

        Args:
            masking: the ratios and their schedules.
            draws: the epoch's random streams.
            progress: share of the run's bags already seen, in [0, 1].
            learning_rate, teacher_share: see the properties; only recorded work needs them.
        """
        streams = (draws.stream(purpose) for purpose in ops.STREAMS)
        packed = _LAYOUT.pack(*ratios_at(masking, progress), *streams, learning_rate, teacher_share)
        return cls(torch.frombuffer(bytearray(packed), dtype=torch.int64))

    def to(self, device: torch.device) -> Self:
        """The numbers on a device; the copy may still be under way when this returns."""
        if device.type == "cpu":
            return self
        return type(self)(torch.empty_like(self.words_W, device=device)).fill(self)

    def fill(self, numbers: Self) -> Self:
        """Take over other numbers from the CPU, by a copy that nothing waits for."""
        is_cuda = self.words_W.device.type == "cuda"
        self.words_W.copy_(numbers.words_W.pin_memory() if is_cuda else numbers.words_W, non_blocking=True)
        return self

    @property
    def ratios_4(self) -> Tensor:
        """The masks' ratios, float64, as `ops.bag_numbers` expects them."""
        return self.words_W[:4].view(torch.float64)

    @property
    def streams_S(self) -> Tensor:
        """The streams' constants, int64, as `ops.bag_numbers` expects them."""
        return self.words_W[4 : 4 + len(ops.STREAMS)]

    @property
    def learning_rate(self) -> Tensor:
        """The optimiser's learning rate, a float32 scalar."""
        return self._rate(0)

    @property
    def teacher_share(self) -> Tensor:
        """How far the teacher moves towards the student, 1 - momentum, a float32 scalar."""
        return self._rate(1)

    def _rate(self, place: int) -> Tensor:
        return self.words_W.view(torch.float32)[_RATES + place]
