"""Bags per second of each way of loading fp16 bags for a bf16 step: alone, and with AB-MIL behind it."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_check.measure import sync
from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.workload import MemoryBags, config_of, step_of, write_shards
from mhimdist.config.train import Loading
from mhimdist.data.bags import BagSource
from mhimdist.data.read_ahead import Batches, read_ahead
from mhimdist.data.resident import DeviceBags
from mhimdist.errors import ConfigError
from mhimdist.ops.draws import Draws

PAGE_CACHE, MEMORY, ON_DEVICE, DALI = "shards in the page cache", "memory", "cache=device", "DALI"
_DTYPE = torch.bfloat16

Reader = Callable[[], Batches]


def check(notes: Notes, setting: Setting) -> None:
    """Read all bags a few times in each way, then train on them."""
    torch.set_num_threads(1)
    num_bags = 32 if setting.is_gpu else 6
    order = [[number] for number in range(num_bags)] * (4 if setting.is_gpu else 1)
    with tempfile.TemporaryDirectory(prefix="gpu-check-shards-") as folder:
        readers = _readers(notes, setting, Path(folder), num_bags, order)
        for name, reader in readers.items():
            with notes.trying(f"read, {name}"):
                _read(notes, setting, name, reader, len(order))
        for graphs in (False, True):
            if graphs and not setting.is_gpu:
                notes.leave_out("trained, graphs", "needs a GPU")
                continue
            for name, reader in readers.items():
                with notes.trying(f"trained, {name}, {'graphs' if graphs else 'plain'}"):
                    _train(notes, setting, name, reader, graphs=graphs)


def _readers(
    notes: Notes, setting: Setting, folder: Path, num_bags: int, order: list[list[int]]
) -> dict[str, Reader]:
    """The readers that this machine has."""

    def of(bags: BagSource, loading: Loading | None = None) -> Reader:
        return lambda: read_ahead(bags, order, dtype=_DTYPE, device=setting.device, loading=loading)

    memory = MemoryBags(setting, num_bags, torch.float16)
    readers = {MEMORY: of(memory)}
    with notes.trying(ON_DEVICE):
        readers[ON_DEVICE] = of(DeviceBags(memory, setting.device))
    with notes.trying(PAGE_CACHE):
        from mhimdist.data.shards import BagShards

        write_shards(folder, setting, num_bags)
        shards = BagShards(folder)
        readers[PAGE_CACHE] = of(shards)
        try:
            with of(shards, Loading(reader="dali"))() as batches:
                next(iter(batches))
            readers[DALI] = of(shards, Loading(reader="dali"))
        except (ImportError, ConfigError) as error:
            notes.leave_out(DALI, str(error))
    return readers


def _read(notes: Notes, setting: Setting, name: str, reader: Reader, num_bags: int) -> None:
    """Read alone. The first time checks sums and allocates pinned memory; the median of three more counts."""
    rates = []
    for _ in range(4):
        sync(setting)
        began, expected = time.perf_counter(), 0
        with reader() as batches:
            for batch in batches:
                expected += len(batch)
                assert batch.features_TD.dtype in (_DTYPE, torch.float16)
            sync(setting)
        assert expected == num_bags
        rates.append(round(num_bags / (time.perf_counter() - began), 1))
    notes.add("read", {"source": name, "bags_per_s": sorted(rates[1:])[1], "first_bags_per_s": rates[0]})


def _train(notes: Notes, setting: Setting, name: str, reader: Reader, *, graphs: bool) -> None:
    """Train AB-MIL in bf16 for three epochs, as the engine does; the better of the last two counts."""
    step = step_of(setting, config_of(setting, "abmil", "bf16", graphs=graphs), graphs=graphs)
    rates = []
    for epoch in range(3):
        sync(setting)
        began, num_bags = time.perf_counter(), 0
        with reader() as batches:
            for batch in batches:
                step(batch, Draws(0, epoch), progress=0.1, num_bags=len(batch))
                num_bags += len(batch)
                del batch
            step.check(wait=True)
        sync(setting)
        rates.append(round(num_bags / (time.perf_counter() - began), 1))
    notes.add("trained", {"source": name, "graphs": graphs, "bags_per_s": max(rates[1:])})
