"""A stand-in for a GPU whose copies run as late as CUDA allows: only once something waits for them.

Memory that the host reuses or frees too early therefore shows, on every run, as wrong numbers.
"""

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mhimdist.data import gpu_pages, read_ahead
from mhimdist.data.bags import PackedBags

DEVICE = torch.device("cuda", 3)


class Stream:
    """Work in the order in which it was submitted; `torch.cuda.Stream`."""

    cuda_stream = 17

    def __init__(self, device: Any = None) -> None:
        self._work: deque[Callable[[], object]] = deque()
        self.submitted = self.done = 0
        self._lock = threading.RLock()

    def submit(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._work.append(work)
            self.submitted += 1

    def run(self, until: int | None = None) -> None:
        """Do the work that is not done yet: all of it, or that before event `until`."""
        with self._lock:
            while self._work and (until is None or self.done < until):
                self._work.popleft()()
                self.done += 1

    def wait_event(self, event: "Event") -> None:
        self.submit(event.synchronize)


class Event:
    """A place in a stream; `torch.cuda.Event`."""

    ignores_waits = False  # true: the host does not wait, as if the code had forgotten to

    def record(self, stream: Stream) -> None:
        self._stream, self._number = stream, stream.submitted

    def query(self) -> bool:
        return self._stream.done >= self._number

    def synchronize(self) -> None:
        if not Event.ignores_waits:
            self._stream.run(self._number)


def bytes_at(address: int, num_bytes: int) -> bytes:
    """What is at an address; this does not keep the memory alive, as a GPU's copy does not either."""
    return ctypes.string_at(address, num_bytes)


def _unpinned(buffer: Callable[..., Any]) -> Callable[..., Any]:
    """`read_ahead._buffer` without pinning, which needs a GPU; a spare one serves as usual."""

    def unpinned(num_bytes: int, *, pinned: bool, what: str) -> Any:
        if pinned and True in read_ahead._spare:
            read_ahead._spare[False] = read_ahead._spare.pop(True)
        return buffer(num_bytes, pinned=False, what=what)

    return unpinned


class LateGpu:
    """The GPU, in place of torch's functions.

    Attributes:
        consumer: the stream of whoever uses the batches.
        reads_pages: whether it fetches bags from the pages of their files.
        fetched: number of bags that it has fetched so.
        received: keys of each batch that was copied, and the dtype that its features had then; two threads
            add to it, so the order means nothing.
        kept_for: the streams for which memory was kept, `Tensor.record_stream`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, reads_pages: bool = False) -> None:
        self.consumer = Stream()
        self.reads_pages, self.fetched = reads_pages, 0
        self._on_the_gpu: list[Tensor] = []
        self.received: list[tuple[tuple[str, ...], torch.dtype]] = []
        self.kept_for: list[Stream] = []
        self._current = threading.local()
        monkeypatch.setattr(Event, "ignores_waits", False)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", self._within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self._stream())
        kept_for = self.kept_for
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: kept_for.append(stream))
        monkeypatch.setattr(read_ahead, "_buffer", _unpinned(read_ahead._buffer))
        monkeypatch.setattr(read_ahead, "_spare", {})
        monkeypatch.setattr(gpu_pages, "_call", self._call)
        monkeypatch.setattr(gpu_pages, "fetched", self._fetched)

    def replace_copies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the copies of batches that are on the CPU."""
        monkeypatch.setattr(PackedBags, "to", lambda bags, _, dtype=None: self._copied(bags, dtype))

    def _call(self, name: str, *arguments: int) -> None:
        if not self.reads_pages:
            raise OSError(801, f"{name} returned error 801")

    def _fetched(self, parts: Sequence[Tensor], device: torch.device) -> Tensor:
        assert self.reads_pages
        self.fetched += len(parts)
        features_TD = torch.full_like(torch.cat(list(parts)), torch.nan)
        self._on_the_gpu.append(features_TD)  # its own allocator knows what its stream still needs
        start = features_TD.data_ptr()
        for part_ND in parts:
            target, source, num_bytes = start, part_ND.data_ptr(), part_ND.nbytes
            self._stream().submit(partial(ctypes.memmove, target, source, num_bytes))
            start += num_bytes
        return features_TD

    def _stream(self) -> Stream:
        return getattr(self._current, "stream", self.consumer)

    @contextmanager
    def _within(self, stream: Stream) -> Iterator[None]:
        self._current.stream = stream
        yield
        del self._current.stream

    def _copied(self, bags: PackedBags, dtype: torch.dtype | None) -> PackedBags:
        given_TD = bags.features_TD
        self.received.append((bags.keys, given_TD.dtype))
        features_TD = torch.full(given_TD.shape, torch.nan, dtype=dtype or given_TD.dtype)
        address, shape, stored = given_TD.data_ptr(), given_TD.shape, given_TD.dtype

        def copy() -> None:
            content = bytearray(bytes_at(address, shape.numel() * stored.itemsize))
            features_TD.copy_(torch.frombuffer(content, dtype=stored).view(shape))

        if shape.numel():
            self._stream().submit(copy)
        return replace(bags, features_TD=features_TD)


class MadeOnTheCpu(TorchFunctionMode):
    """What is requested on a GPU is made on the CPU.

    Attributes:
        requests: names of the functions that were asked for something on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        asked = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.device)]
        if any(device.type == "cuda" for device in asked):
            self.requests.append(func.__name__)
        if kwargs.pop("pin_memory", False):
            self.requests.append("pin_memory")
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        return func(*("cpu" if isinstance(arg, torch.device) else arg for arg in args), **kwargs)


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are equal in dtype, shape and every bit."""
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[ours.itemsize]
    return torch.equal(ours.view(bits), theirs.view(bits))
