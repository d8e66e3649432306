"""`DaliBatches`: NVIDIA DALI as the reader, with the same batches in the same order as every other reader.

DALI's own `readers.webdataset` reads whole tars in an order that cannot follow our plan, and it gives each
rank a part of the data set instead of a part of each step. Here an `external_source` follows the plan: for
each step it gets the members of that step's bags, .npy files straight from the mapped shards without a copy.
The rest is DALI's pipeline: its threads decode the .npy files, its prefetch queue runs ahead of the consumer,
and on a GPU it copies and converts there. The source counts steps, so an epoch resumes at any step.

Dimensions: T instances of a batch, N of a bag, B bags of a batch, D features.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mhimdist.data import memory
from mhimdist.data.bags import BagSource, PackedBags
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, MhimdistError

NUM_THREADS = 2
PREFETCHED_STEPS = 2


class DaliBatches:
    """The batches of some steps from a DALI pipeline; see `read_ahead.read_ahead`."""

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
            bags, steps, dtype, device: as for `read_ahead.read_ahead`.

        Raises:
            ConfigError: DALI is not installed, or the data set is not in shards of a single dtype.
            DataError: the largest steps need more memory than this process can have.
        """
        if not isinstance(bags, BagShards):
            raise ConfigError(f"loading.reader=dali reads shards, got {type(bags).__name__}; use mmap")
        if len(bags.stored_dtypes) > 1:
            # DALI decodes a batch to one type, and would read the bits of bfloat16 as integers.
            names = ", ".join(bags.stored_dtypes)
            raise ConfigError(
                f"loading.reader=dali expects features of one dtype, {bags.folder} has {names}; use mmap"
            )
        self._bags, self._dtype, self._device = bags, dtype, device
        self._steps = [np.asarray(rows, np.int64) for rows in steps]
        self._source = (self._payloads(rows_B) for rows_B in self._steps if len(rows_B))
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
        parts = [self._features(decoded[i]) for i in range(len(rows_B))]
        features_TD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return PackedBags.of_rows(self._bags, rows_B, features_TD).to(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipeline = None

    def _require_memory(self) -> None:
        """Refuse steps that do not fit in memory together: those in the queue and the one in use."""
        itemsize = max(self._dtype.itemsize, self._bags.dtype.itemsize)
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
            device_id=(self._device.index or 0) if on_gpu else None,
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
            if self._dtype == torch.float32 and self._bags.dtype != torch.bfloat16:
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
        return [self._bags.payload(row) for row in rows_B.tolist()]

    def _features(self, decoded: object) -> Tensor:
        features_ND = torch.utils.dlpack.from_dlpack(decoded)
        if self._bags.dtype == torch.bfloat16:
            features_ND = features_ND.view(torch.bfloat16)  # stored as its bits
        return features_ND.to(self._dtype)
