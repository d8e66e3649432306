"""What must happen to a GB of sources on its way into shards: seconds of one core for each stage, alone.

The stages run on one file's real bytes, in pieces of the size that sharding takes, with the calls that it
makes. Their sum is a floor of sharding's processor time, because each stage reads bytes that the one before
it made.
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

ROUNDS = 7
MOST_BYTES = 128 << 20
"""Of the features in memory."""


def stages(folder: Path) -> dict[str, float]:
    """Seconds of one core for each stage, per GB of the folder's files; `all` is their sum.

    Args:
        folder: of features, of which the first file is taken.
    """
    source = sorted(find_features(folder).items())[0][1]
    read = read_features(source)
    row_bytes = read.num_features * read.dtype.itemsize
    num_rows = min(read.num_instances, MOST_BYTES // row_bytes)
    share = num_rows / read.num_instances
    gb = source.path.stat().st_size * share / 1e9
    piece_bytes = CHUNK_BYTES * read.dtype.itemsize // 2
    pieces = list(read.features_ND[:num_rows].clone().split(max(1, piece_bytes // row_bytes)))
    halves = [torch.empty(piece.shape, dtype=torch.float16) for piece in pieces[:1]]
    stored = [piece.half().view(torch.uint8).numpy().data for piece in pieces]

    def convert() -> None:
        for piece in pieces:
            halves[0][: len(piece)].copy_(piece)

    def read_all() -> None:
        for piece in read_features(source).blocks(piece_bytes):
            piece.view(torch.uint8)[:, ::4096].sum()  # a mapped file is read when it is touched

    with tempfile.TemporaryFile(dir=folder.parent, buffering=0) as out:

        def write() -> None:
            os.ftruncate(out.fileno(), 0)
            out.seek(0)
            for piece in stored:
                out.write(piece)

        found = {
            "reading": _core_s(read_all) * share,
            "extremes": _core_s(lambda: [torch.aminmax(piece) for piece in pieces]),
            "conversion": 0.0 if read.dtype == torch.float16 else _core_s(convert),
            "crc32": _core_s(lambda: [isal_zlib.crc32(piece) for piece in stored]),
            "sha256": _core_s(lambda: [hashlib.sha256(piece) for piece in stored]),
            "writing": _core_s(write),
        }
    per_gb = {name: round(taken / gb, 3) for name, taken in found.items()}
    return per_gb | {"all": round(sum(per_gb.values()), 3)}


def _core_s(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return statistics.median(taken)
