"""`DaliBatches`: NVIDIA DALI as the reader, with the same batches in the same order as every other reader.

DALI's own `readers.webdataset` reads whole tars in an order that cannot follow our plan, and it gives each
rank a part of the data set instead of a part of each step. Here an `external_source` follows the plan: for
each step it gets the members of that step's bags, .npy files straight from the mapped shards without a copy.
The rest is DALI's pipeline: its threads decode the .npy files, and its prefetch queue runs ahead of the
consumer. For a GPU it copies them there as stored, and torch converts them into memory of its own. The source
counts steps, so an epoch resumes at any step.

Dimensions: T instances of a batch, N of a bag, B bags of a batch, D features.
"""

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mhimdist.data import memory
from mhimdist.data.bags import BagSource, PackedBags
from mhimdist.data.stored import StoredBags
from mhimdist.data.sub_bags import SubBags, whole_bags
from mhimdist.errors import ConfigError, MhimdistError

NUM_THREADS = 2
PREFETCHED_STEPS = 2


class _Outputs(Protocol):
    """The part of `nvidia.dali.tensors.TensorListGPU` that is used: the arrays of a step's bags."""

    def __getitem__(self, bag: int) -> Any: ...


class DaliBatches:
    """The batches of some steps from a DALI pipeline; see `read_ahead.read_ahead`.

    DALI keeps an output only as long as the host refers to it, and torch's streams are unknown to it. So on a
    GPU each output is copied into memory of torch, and held until an event says that the copy is done. DLPack
    would save the copy, but DALI then synchronises the whole device before it frees an output, from a thread
    of its own, which CUDA forbids while a graph is recorded.
    """

    def __init__(
        self,
        bags: BagSource,
        steps: Sequence[Sequence[int] | np.ndarray],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Build the pipeline.

        Args:
            bags, steps, dtype: as for `read_ahead.read_ahead`.
            device: device of the batches; a GPU with its index, which DALI's pipeline takes, too.

        Raises:
            ConfigError: DALI is not installed, or the data set is not in shards of a single dtype.
            DataError: the largest steps need more memory than this process can have.
        """
        whole = whole_bags(bags)
        if not isinstance(whole, StoredBags):
            raise ConfigError(f"loading.reader=dali reads shards, got {type(whole).__name__}; use mmap")
        if len(whole.stored_dtypes) > 1:
            # DALI decodes a batch to one type, and would read the bits of bfloat16 as integers.
            names = ", ".join(whole.stored_dtypes)
            raise ConfigError(
                f"loading.reader=dali expects features of one dtype, {whole.folder} has {names}; use mmap"
            )
        self._bags = bags if isinstance(bags, SubBags) else whole
        self._stored, self._dtype, self._device = whole.dtype, dtype, device
        self._steps = [np.asarray(rows, np.int64) for rows in steps]
        self._source = (self._payloads(rows_B) for rows_B in self._steps if len(rows_B))
        self._decoding: deque[list[np.ndarray]] = deque()  # files that the pipeline may still read
        self._copying: deque[tuple[torch.cuda.Event, _Outputs]] = deque()  # outputs a GPU may still read
        self._error: MhimdistError | OSError | None = None
        self._next = 0
        self._require_memory()
        most = max((len(rows_B) for rows_B in self._steps), default=0)
        self._pipeline = self._build(most) if most else None

    def __iter__(self) -> Iterator[PackedBags]:
        return self

    def __next__(self) -> PackedBags:
        """The next step's batch.

        Raises:
            CorruptShard, DataError: as in `BagShards.load`.
        """
        if self._next == len(self._steps):
            raise StopIteration
        rows_B = self._steps[self._next]
        self._next += 1
        empty = self._bags.load(rows_B[:0], self._dtype)
        if not len(rows_B):
            return empty.to(self._device)
        assert self._pipeline is not None, "a step with bags has a pipeline until the reader is closed"
        try:
            (decoded,) = self._pipeline.run()
        except RuntimeError:  # DALI turns every error of the source into one
            if self._error is not None:
                raise self._error from None
            raise
        self._decoding.popleft()  # `run` returns when this step's work is done, on a GPU too
        if self._device.type == "cuda":
            features_TD = self._copied(decoded, self._bags.sizes_N[rows_B].tolist())
        else:
            parts = [self._features(decoded[i]) for i in range(len(rows_B))]
            features_TD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return PackedBags.of_rows(self._bags, rows_B, features_TD).to(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._release(keep=0)
        self._pipeline = None

    def _copied(self, decoded: "_Outputs", sizes: list[int]) -> Tensor:
        """Outputs on the GPU, laid end to end in the step's dtype; they are held until they are copied."""
        shape = sum(sizes), self._bags.num_features
        stored_TD = torch.empty(shape, dtype=self._stored, device=self._device)
        stream = torch.cuda.current_stream(self._device)
        for bag, place_ND in enumerate(stored_TD.split(sizes)):
            address, handle = ctypes.c_void_p(place_ND.data_ptr()), ctypes.c_void_p(stream.cuda_stream)
            decoded[bag].copy_to_external(address, handle, non_blocking=True)
        event = torch.cuda.Event()
        event.record(stream)
        self._copying.append((event, decoded))
        self._release(keep=PREFETCHED_STEPS)
        return stored_TD.to(self._dtype)

    def _release(self, keep: int) -> None:
        """Release the outputs that have been copied, and wait until at most `keep` steps of them are left.

        The wait bounds the memory of a GPU that is behind: each of these steps is there twice.
        """
        while self._copying and (len(self._copying) > keep or self._copying[0][0].query()):
            self._copying[0][0].synchronize()
            self._copying.popleft()

    def _require_memory(self) -> None:
        """Refuse steps that do not fit in memory together: those in the queue and the one in use."""
        itemsize = max(self._dtype.itemsize, self._stored.itemsize)
        row_bytes = self._bags.num_features * itemsize
        bytes_S = [int(self._bags.sizes_N[rows_B].sum()) * row_bytes for rows_B in self._steps]
        num_held = PREFETCHED_STEPS + 1
        most = max((sum(bytes_S[step : step + num_held]) for step in range(len(bytes_S))), default=0)
        if most:
            largest = max(range(len(bytes_S)), key=bytes_S.__getitem__)
            what = memory.describe(self._bags, self._steps[largest], self._dtype)
            memory.require(most, f"{what}, with {PREFETCHED_STEPS} other steps in memory")

    def _build(self, most_bags: int):  # type: ignore[no-untyped-def]  # DALI has no types
        try:
            from nvidia.dali import fn
            from nvidia.dali.pipeline import Pipeline
            from nvidia.dali.types import DALIDataType
        except ImportError as error:
            raise ConfigError(
                f"loading.reader=dali needs DALI: pip install nvidia-dali-cuda130 ({error})"
            ) from None
        on_gpu = self._device.type == "cuda"
        pipeline = Pipeline(
            batch_size=most_bags,
            num_threads=NUM_THREADS,
            device_id=self._device.index if on_gpu else None,
            prefetch_queue_depth=PREFETCHED_STEPS,
            exec_dynamic=True,  # outputs live as long as they are referenced
        )
        with pipeline:
            files = fn.external_source(
                self._give, dtype=DALIDataType.UINT8, ndim=1, batch=True, no_copy=True, name="npy"
            )
            features = fn.decoders.numpy(files)
            if on_gpu:
                features = features.gpu()
            elif self._dtype == torch.float32 and self._stored != torch.bfloat16:
                features = fn.cast(features, dtype=DALIDataType.FLOAT)  # DALI itself has no bfloat16
            pipeline.set_outputs(features)
        pipeline.build()
        return pipeline

    def _give(self) -> list[np.ndarray]:
        """The .npy files of the next step that has bags; DALI asks for them ahead of the consumer."""
        try:
            return next(self._source)
        except (MhimdistError, OSError) as error:
            self._error = error
            raise

    def _payloads(self, rows_B: np.ndarray) -> list[np.ndarray]:
        files = [self._bags.payload(row) for row in rows_B.tolist()]
        self._decoding.append(files)  # DALI does not copy them, and their shard may be unmapped meanwhile
        return files

    def _features(self, decoded: object) -> Tensor:
        """An output on the CPU as a tensor, on the same memory if it is not converted."""
        features_ND = torch.utils.dlpack.from_dlpack(decoded)
        if self._stored == torch.bfloat16:
            features_ND = features_ND.view(torch.bfloat16)  # stored as its bits
        return features_ND.to(self._dtype)
