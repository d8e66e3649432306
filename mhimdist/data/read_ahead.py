"""`read_ahead`: the batches of an epoch, each prepared while the previous one is in use.

Dimensions: T instances of a batch, D features.
"""

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mhimdist.config.train import Loading
from mhimdist.data import fresh_pages, gpu_pages, memory
from mhimdist.data.bags import BagSource, PackedBags
from mhimdist.data.devices import indexed, read_dtype, stored_dtypes
from mhimdist.data.gpu_pages import GpuPages, InFiles
from mhimdist.data.resident import DeviceBags, RamBags
from mhimdist.data.stored import StoredBags
from mhimdist.data.sub_bags import SubBags, whole_bags

Steps = Sequence[Sequence[int] | np.ndarray]

_ALIGNMENT = 64


class Batches(Protocol):
    """An iterator over batches that is also a context; leaving the context ends its background work."""

    def __iter__(self) -> Iterator[PackedBags]: ...

    def __next__(self) -> PackedBags: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def read_ahead(
    bags: BagSource,
    steps: Steps,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    loading: Loading | None = None,
) -> Batches:
    """Iterate over the batches of some steps in their order, with the reader that the configuration names.

    Every reader makes the same bits in the same order, so a run may change its reader, and it resumes within
    an epoch from the remaining steps.

    Args:
        bags: the data set.
        steps: row numbers of each step's bags; a step may be empty.
        dtype: floating dtype of the features.
        device: device of the batches.
        loading: settings of the reader; None for the defaults.

    Raises:
        ConfigError: the reader is not installed, or cannot read this data set.
        DataError: the largest steps need more memory than this process can have; the message names their
            largest bag.
    """
    loading, device = loading or Loading(), indexed(device)
    whole = whole_bags(bags)
    if isinstance(whole, StoredBags):
        whole.fetch_ahead(row for rows in steps for row in rows)
    if isinstance(whole, DeviceBags):
        return Unbuffered(bags, steps, dtype=dtype, device=device)
    if loading.reader == "dali" and not isinstance(whole, RamBags):
        from mhimdist.data.dali import DaliBatches  # a heavy import, only if it is needed

        return DaliBatches(bags, steps, dtype=dtype, device=device)
    if not loading.read_ahead and device.type == "cuda":
        return Unbuffered(bags, steps, dtype=dtype, device=device)
    return ReadAhead(bags, steps, dtype=dtype, device=device, in_background=loading.read_ahead)


class Unbuffered:
    """The batches of some steps, each made on request.

    Bags that a device holds are converted there. Others are copied to a GPU from the pages where they are:
    the consumer waits for them anyway, and the driver copies them through pinned memory by itself.
    """

    def __init__(self, bags: BagSource, steps: Steps, *, dtype: torch.dtype, device: torch.device) -> None:
        """Read nothing yet.

        Args:
            bags, steps, dtype, device: as for `read_ahead`.
        """
        self._batches = (
            bags.load(rows, _load_dtype(bags, rows, dtype, device)).to(device, dtype) for rows in steps
        )

    def __iter__(self) -> Iterator[PackedBags]:
        return self

    def __next__(self) -> PackedBags:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()


class ReadAhead:
    """The batches of some steps, made in reused memory, by a thread one step ahead of the consumer.

    Without the thread the consumer makes each batch itself, in the same memory: filling pages that the
    process has is several times as fast as requesting new ones.

    Even steps are at the start of one buffer and odd steps at its end. The buffer is as large as the two
    largest neighbouring steps together, and pinned for a GPU. The thread refills a step's half only when no
    tensor or array shares it any more. A faster consumer makes the next batch itself; if it still holds the
    batch in that half, the new batch gets other memory. For a GPU, a separate stream copies batches in the
    dtype that `devices.read_dtype` chooses, and the GPU converts them.
    """

    def __init__(
        self,
        bags: BagSource,
        steps: Steps,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        in_background: bool = True,
    ) -> None:
        """Start reading.

        Args:
            bags, steps, dtype, device: as for `read_ahead`.
            in_background: whether a thread makes the batches ahead.

        Raises:
            DataError: the buffer needs more memory than this process can have.
        """
        self._bags, self._steps, self._dtype, self._device = bags, steps, dtype, indexed(device)
        self._is_cuda = self._device.type == "cuda"
        self._arena = self._new_arena()
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._stream = torch.cuda.Stream(self._device) if self._is_cuda else None
        self._given = self._claimed = 0  # steps handed to the consumer; steps made or being made
        self._is_making = self._is_closed = False  # state of the thread
        self._ready: PackedBags | BaseException | None = None
        self._thread: threading.Thread | None = None
        if in_background:
            self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[PackedBags]:
        return self

    def __next__(self) -> PackedBags:
        """The next step's batch.

        Raises:
            Exception: the read of this step raised it, in the background or here.
        """
        if self._given == len(self._steps) or self._is_closed:
            raise StopIteration
        changed, made = self._arena.changed, None
        with changed:
            while self._ready is None and self._is_making:
                changed.wait()
            if self._ready is not None:
                made, self._ready = self._ready, None
            else:  # the thread has not begun; the step is made here, which saves the wait for its scheduling
                number, self._claimed = self._claimed, self._claimed + 1
            changed.notify_all()
        self._given += 1
        if made is None:
            try:
                made = self._make(number)
            except BaseException:
                self.close()
                raise
        if isinstance(made, BaseException):
            self.close()
            raise made
        if self._is_cuda:
            self._hand_over(made, self._copied[(self._given - 1) % 2])
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; batches already handed out stay valid."""
        with self._arena.changed:
            self._is_closed = True
            self._arena.changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._ready = None
        for event in self._copied:
            if event is not None:
                event.synchronize()
        self._arena.give_back()

    def _work(self) -> None:
        changed = self._arena.changed
        while True:
            with changed:
                while not self._is_closed and (
                    self._ready is not None
                    or (self._claimed < len(self._steps) and not self._arena.is_free(self._claimed))
                ):
                    changed.wait()
                if self._is_closed or self._claimed == len(self._steps):
                    return
                number, self._claimed = self._claimed, self._claimed + 1
                self._is_making = True
            made: PackedBags | BaseException
            try:
                made = self._make(number)
            except BaseException as error:  # the consumer handles it
                made = error
            with changed:
                self._ready, self._is_making = made, False
                changed.notify_all()
            if isinstance(made, BaseException):
                return
            del made  # otherwise the batch would count as in use

    def _new_arena(self) -> "_Arena":
        bytes_S = [
            0 if self._is_view(rows) else self._num_instances(rows) * self._row_bytes(rows)
            for rows in self._steps
        ]
        largest = max(range(len(bytes_S)), key=bytes_S.__getitem__, default=0)
        what = ""
        if bytes_S and bytes_S[largest]:
            rows = self._steps[largest]
            what = memory.describe(self._bags, rows, self._read_dtype(rows))
        return _Arena(bytes_S, pinned=self._is_cuda, what=f"{what}, with the neighbouring step")

    def _read_dtype(self, rows: Sequence[int] | np.ndarray) -> torch.dtype:
        return _load_dtype(self._bags, rows, self._dtype, self._device)

    def _num_instances(self, rows: Sequence[int] | np.ndarray) -> int:
        return int(self._bags.sizes_N[np.asarray(rows, np.int64)].sum())

    def _row_bytes(self, rows: Sequence[int] | np.ndarray) -> int:
        return self._bags.num_features * self._read_dtype(rows).itemsize

    def _is_view(self, rows: Sequence[int] | np.ndarray) -> bool:
        """Whether the batch is a view of its file or data set: a single bag, not converted, for a CPU."""
        if self._is_cuda or len(rows) != 1:
            return False
        if isinstance(self._bags, SubBags) and not self._bags.takes_all(rows[0]):
            return False
        whole = whole_bags(self._bags)
        if isinstance(whole, RamBags):
            return True  # it converts all its bags on the first load
        if isinstance(whole, StoredBags):
            return whole.is_view(rows, self._dtype)
        return stored_dtypes(whole, rows, self._dtype) == {self._dtype}

    def _make(self, number: int) -> PackedBags:
        rows = self._steps[number]
        dtype = self._read_dtype(rows)
        if self._is_view(rows):
            return self._bags.load(rows, dtype)
        if (event := self._copied[number % 2]) is not None:
            event.synchronize()
        if self._stream is not None and (parts := self._in_pages(rows, dtype)):
            with torch.cuda.stream(self._stream):
                features_TD = gpu_pages.fetched(parts, self._device)
                batch = PackedBags.of_rows(self._bags, np.asarray(rows, np.int64), features_TD)
                return self._copying(batch, number)
        buffer_TD = self._arena.lease(number, (self._num_instances(rows), self._bags.num_features), dtype)
        batch = self._bags.load(rows, dtype, out=buffer_TD)
        if self._stream is None:
            return batch
        features_TD = batch.features_TD
        if features_TD.data_ptr() != buffer_TD.data_ptr():  # a view of the mapped file; a GPU reads it slowly
            features_TD = buffer_TD.copy_(features_TD)
        with torch.cuda.stream(self._stream):
            return self._copying(replace(batch, features_TD=features_TD), number)

    def _copying(self, batch: PackedBags, number: int) -> PackedBags:
        """The batch of a step on the GPU, which its stream copies and converts."""
        assert self._stream is not None
        on_device = batch.to(self._device, self._dtype)
        event = self._copied[number % 2] = torch.cuda.Event()
        event.record(self._stream)
        return on_device

    def _in_pages(self, rows: Sequence[int] | np.ndarray, dtype: torch.dtype) -> list[Tensor]:
        """The bags of a step in pages that the GPU reads; none if a core has to copy or convert one."""
        bags = self._bags
        if not isinstance(bags, InFiles) or stored_dtypes(bags, rows, dtype) != {dtype}:
            return []
        pages = _pages.get(bags) or _pages.setdefault(bags, GpuPages())
        found: list[Tensor] = []
        for row in rows:
            shape = int(bags.sizes_N[row]), bags.num_features
            if (part_ND := pages.bag(int(row), bags.place(int(row)), shape, dtype)) is None:
                return []
            found.append(part_ND)
        return found

    def _hand_over(self, batch: PackedBags, copied: torch.cuda.Event | None) -> None:
        """Make the consumer's stream wait for the copy, and keep the memory until that stream has used it.

        The stream waits for this batch's copy only: the next one may be under way already.
        """
        consumer = torch.cuda.current_stream(self._device)
        assert copied is not None, "only batches that a stream copied are handed over"
        consumer.wait_event(copied)
        for tensor in (batch.features_TD, batch.offsets_B1, batch.labels_B, batch.ids_B, batch.targets_BK):
            if tensor is not None:
                tensor.record_stream(consumer)


def _load_dtype(
    bags: BagSource, rows: Sequence[int] | np.ndarray, dtype: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype in which to load a step: a device that holds its bags converts them itself, in one pass."""
    if isinstance(whole_bags(bags), DeviceBags):
        return dtype
    return read_dtype(stored_dtypes(bags, rows, dtype), dtype, device.type)


class _Arena:
    """A buffer for two steps at a time, which knows which of its halves are in use.

    A lease is a tensor over a numpy view of the buffer. torch keeps this view alive as long as any tensor, or
    array of a tensor, shares the memory, so a weak reference to the view tells when the memory is free.

    Attributes:
        changed: condition that guards all state of `ReadAhead`; notified when a half becomes free.
    """

    def __init__(self, bytes_S: Sequence[int], *, pinned: bool, what: str) -> None:
        aligned_S = [-(-num_bytes // _ALIGNMENT) * _ALIGNMENT for num_bytes in bytes_S]
        largest = max((sum(aligned_S[step : step + 2]) for step in range(len(aligned_S))), default=0)
        self._pinned, self._is_closed = pinned, False
        self._buffer = _buffer(max(largest, _ALIGNMENT), pinned=pinned, what=what)
        self._leases: list[weakref.ref[np.ndarray] | None] = [None, None]
        self.changed = threading.Condition()

    def is_free(self, number: int) -> bool:
        """Whether the memory that a step of this number would overwrite is unused."""
        lease = self._leases[number % 2]
        return lease is None or lease() is None

    def give_back(self) -> None:
        """Pass the memory to the next arena of this process, once it is unused."""
        self._is_closed = True
        if self.is_free(0) and self.is_free(1):
            _spare[self._pinned] = self._buffer

    def lease(self, number: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Memory for a step: its half of the buffer if that is free, otherwise new memory."""
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if not self.is_free(number):
            return torch.empty(shape, dtype=dtype)
        start = 0 if number % 2 == 0 else (len(self._buffer) - num_bytes) // _ALIGNMENT * _ALIGNMENT
        view = self._buffer[start : start + num_bytes]
        if not self._pinned:
            fresh_pages.populate(view)

        def freed(_: object) -> None:
            with self.changed:
                self.changed.notify_all()
            if self._is_closed:
                self.give_back()

        self._leases[number % 2] = weakref.ref(view, freed)
        return torch.from_numpy(view).view(dtype).view(shape)


_pages: weakref.WeakKeyDictionary[BagSource, GpuPages] = weakref.WeakKeyDictionary()

_spare: dict[bool, np.ndarray] = {}  # last arena's buffer, by pinned or not; saves the request for new pages


def _buffer(num_bytes: int, *, pinned: bool, what: str) -> np.ndarray:
    spare = _spare.pop(pinned, None)
    if spare is not None and len(spare) >= num_bytes:
        return spare
    del spare
    memory.require(num_bytes, what)
    if pinned:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    return fresh_pages.new(num_bytes)
