"""What must happen to a GB of sources on its way into shards: seconds of one core for each stage, alone.

The stages make the calls that sharding makes, on real bytes, in pieces of the size that it takes. A piece
lies in the cache, as if the stage before had just made it, so their sum is a floor of sharding's processor
time.
"""

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from isal import isal_zlib

from data_prep.readers.folders import find_features
from data_prep.readers.sources import read_features
from data_prep.writing.writer import CHUNK_BYTES
from mhimdist.data.torch_threads import one_torch_thread

ROUNDS = 7


def stages(folder: Path) -> dict[str, float]:
    """Seconds of one core for each stage, per GB of the folder's files; `all` is their sum.

    Args:
        folder: of features, of which the first file is taken.
    """
    source = sorted(find_features(folder).items())[0][1]
    read = read_features(source)
    row_bytes = read.num_features * read.dtype.itemsize
    piece_bytes = CHUNK_BYTES * read.dtype.itemsize // 2
    piece = read.features_ND[: max(1, piece_bytes // row_bytes)].clone()
    half = torch.empty(piece.shape, dtype=torch.float16)
    stored = piece.half().view(torch.uint8).numpy().data
    per_piece = {
        "extremes": lambda: torch.aminmax(piece),
        "conversion": lambda: half.copy_(piece),
        "crc32": lambda: isal_zlib.crc32(stored),
        "sha256": lambda: hashlib.sha256(stored),
    }
    if read.dtype == torch.float16:
        del per_piece["conversion"]  # they are stored as they are
    num_pieces = -(-read.num_instances // len(piece))
    gb = source.path.stat().st_size / 1e9

    def read_all() -> None:
        for block in read_features(source).blocks(piece_bytes):
            block.view(torch.uint8)[:, ::4096].sum()  # a mapped file is read when it is touched

    with tempfile.TemporaryFile(dir=folder.parent, buffering=0) as out:

        def write() -> None:
            os.ftruncate(out.fileno(), 0)
            out.seek(0)
            for _ in range(num_pieces):
                out.write(stored)

        with one_torch_thread():
            found = {"reading": _core_s(read_all)}
            for name, work in per_piece.items():
                found[name] = _core_s(lambda work=work: [work() for _ in range(num_pieces)])  # type: ignore[misc]
            found["writing"] = _core_s(write)
    per_gb = {name: round(taken / gb, 3) for name, taken in found.items()}
    return per_gb | {"all": round(sum(per_gb.values()), 3)}


def _core_s(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return statistics.median(taken)
