"""Bags that a GPU fetches from the pages of their file, so that no core copies them on their way.

A core copies a bag of 9,000 x 1,024 in float16 into pinned memory in 2.5 ms; from pages that are registered
with CUDA, the GPU fetches it in .36 ms (H200, PCIe 5), and the core is free.

Dimensions: N instances of a bag, T of a batch, D features.
"""

import ctypes
import logging
import mmap
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mhimdist.data import memory

MOST_OF_FREE_MEMORY = 0.25
"""Largest share of the free memory to register: the system can neither drop nor move such pages."""

_READ_ONLY = 8  # cudaHostRegisterReadOnly

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where the features of a bag lie.

    Attributes:
        descriptor: of the open file.
        start: their first byte.
        version: another one if the file has changed.
    """

    descriptor: int
    start: int
    version: int


@runtime_checkable
class InFiles(Protocol):
    """A data set whose bags lie in files, each in one piece."""

    def place(self, row: int) -> Place:
        """Where the features of a bag lie, as they are stored; they are checked as `load` checks them."""


class GpuPages:
    """The bags of a data set whose pages are registered with CUDA, each on its first use.

    Registered are at most `MOST_OF_FREE_MEMORY`; further bags are none of these. Where CUDA, the file system
    or the driver refuses one bag, no further one is tried.
    """

    def __init__(self) -> None:
        """Register nothing yet."""
        self._left_bytes = int(MOST_OF_FREE_MEMORY * memory.free_bytes()[0])
        self._held: dict[int, tuple[int, _Pages]] = {}
        self._outdated: list[_Pages] = []  # a copy from them may be under way

    def bag(self, row: int, place: Place, shape: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
        """The features of a bag, N x D, in pages that a GPU reads; None if a core has to copy them.

        Args:
            row: number of the bag.
            place: where it lies.
            shape: N and D.
            dtype: the stored dtype.
        """
        version, pages = self._held.get(row, (None, None))
        if pages is None or version != place.version:
            if pages is not None:
                self._outdated.append(pages)
            if (pages := self._register(place, shape[0] * shape[1] * dtype.itemsize)) is None:
                return None
            self._held[row] = place.version, pages
        return torch.frombuffer(pages.bytes, dtype=dtype).view(shape)

    def _register(self, place: Place, num_bytes: int) -> "_Pages | None":
        if num_bytes == 0 or num_bytes > self._left_bytes:
            return None
        try:
            pages = _Pages(place.descriptor, place.start, num_bytes)
        except OSError as error:
            _log.info("cores copy bags to the GPU, because it cannot read them from their files: %s", error)
            self._left_bytes = 0
            return None
        self._left_bytes -= num_bytes
        return pages


class _Pages:
    """Pages of a file, registered with CUDA for as long as this lives.

    Attributes:
        bytes: the part of the file that was asked for.
    """

    def __init__(self, descriptor: int, start: int, num_bytes: int) -> None:
        before = start % mmap.ALLOCATIONGRANULARITY
        length = before + num_bytes
        # Shared and read-only: of private pages, the system would make a copy before it keeps them in place.
        self._map = mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start - before)
        address = np.frombuffer(self._map, np.uint8).ctypes.data
        _call("cudaHostRegister", address, length, _READ_ONLY)
        # At the end of the process, the system takes everything back.
        weakref.finalize(self, _unregister, _call, address, self._map).atexit = False
        # torch warns about memory that it cannot write to, but this is only read.
        self.bytes = (ctypes.c_uint8 * num_bytes).from_address(address + before)


def _unregister(call: Callable[..., None], address: int, pages: mmap.mmap) -> None:
    with suppress(OSError):
        call("cudaHostUnregister", address)


def _call(name: str, *arguments: int) -> None:
    """Call a function of CUDA's runtime.

    Raises:
        OSError: it returned an error, which torch then forgets.
    """
    if error := int(getattr(torch.cuda.cudart(), name)(*arguments)):
        with suppress(RuntimeError):  # torch takes the error for its next kernel's, and raises it once
            torch.zeros(1, device="cuda")
        raise OSError(error, f"{name} returned error {error}")


def fetched(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Bags in registered pages, packed on a GPU, T x D, by the current stream; the host does not wait."""
    if len(parts) == 1:
        return parts[0].to(device, non_blocking=True)
    shape = sum(len(part_ND) for part_ND in parts), parts[0].shape[1]
    features_TD = torch.empty(shape, dtype=parts[0].dtype, device=device)
    for place_ND, part_ND in zip(features_TD.split([len(part) for part in parts]), parts, strict=True):
        place_ND.copy_(part_ND, non_blocking=True)
    return features_TD
