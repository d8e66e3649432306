"""Small files that would become large are refused by name, within little memory; so is any damage."""

import gzip
import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from forked import fork, limit_addresses, status_of

from data_prep.readers.folders import find_features
from data_prep.readers.inflation import SMALL_BYTES, refuse_inflation
from data_prep.readers.sources import read_features
from mhimdist.errors import DataError

ROOM = 64 * 2**20
BOMB = bytes(200 * 2**20)
"""The content of a bomb, four times larger than the memory allowed."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_all() -> None:
    for source in find_features(Path()).values():
        read = read_features(source)
        for _ in read.blocks(2**20):
            pass
        assert read.coords_N2 is None or len(read.coords_N2) == read.num_instances
        assert read.instance_labels_N is None or len(read.instance_labels_N) == read.num_instances


def h5_bomb(chunk: bytes, compression: str = "gzip", **options: object) -> None:
    """A file that claims 256 rows of 256 float32 in a chunk of 256 KiB."""
    with h5py.File("a.h5", "w") as file:
        options = {"chunks": (256, 256), "compression": compression, **options}
        dataset = file.create_dataset("features", (256, 256), "f4", **options)
        dataset.id.write_direct_chunk((0, 0), chunk)


def zarr_bomb(chunk: bytes, codec: object, version: int) -> None:
    array = zarr.create_array(
        "a.zarr", shape=(256, 256), chunks=(256, 256), dtype="f4", compressors=codec, zarr_format=version
    )
    array[:] = 1
    (Path("a.zarr") / array.metadata.encode_chunk_key((0, 0))).write_bytes(chunk)


def blosc_bomb() -> bytes:
    chunk = bytearray(numcodecs.Blosc("lz4").encode(bytes(4096)))
    chunk[4:8] = struct.pack("<I", len(BOMB))
    return bytes(chunk)


def npz_bomb() -> None:
    """A record that claims 4 x 4 float32 and inflates to far more."""
    np.savez_compressed("a.npz", features=np.ones((4, 4), np.float32))
    with zipfile.ZipFile("a.npz") as archive:
        (record,) = archive.infolist()
        content = archive.read(record)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    long = compressor.compress(content + BOMB) + compressor.flush()
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", content)
    written = Path("a.npz").read_bytes()
    short = written[30 + len("features.npy") : written.index(b"PK\x01\x02")]
    header, rest = written[: 30 + len("features.npy")], written[written.index(b"PK\x01\x02") :]
    forged = (header + long + rest).replace(struct.pack("<I", len(short)), struct.pack("<I", len(long)))
    at = forged.rindex(b"PK\x05\x06") + 16
    Path("a.npz").write_bytes(forged[:at] + struct.pack("<I", len(header + long)) + forged[at + 4 :])


def parquet_bomb(column: str) -> None:
    """A row of very many equal numbers, which run-length coding stores in a few bytes."""
    numbers = pa.array(np.zeros(len(BOMB) // 16, np.float32))
    flat = pa.FixedSizeListArray.from_arrays(numbers, 1024)
    bag = pa.ListArray.from_arrays([0, len(flat)], flat)
    columns = {"slide": pa.array(["a"]), "features": pa.array([[[1.0, 2.0]]]), column: bag}
    pq.write_table(pa.table(columns), "a.parquet")


def lying_parquet_bomb() -> None:
    """Like `parquet_bomb`, but the footer claims a number of values that would be harmless."""
    parquet_bomb("features")
    content, num_values = Path("a.parquet").read_bytes(), len(BOMB) // 16
    zigzag = [(2 * num_values >> 7 * i) & 127 for i in range(4)]
    said = bytes([*(part | 128 for part in zigzag[:-1]), zigzag[-1]])
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    at = content.index(said, footer)
    Path("a.parquet").write_bytes(content[:at] + b"\x80\x90\x80\0" + content[at + 4 :])


def text_bomb() -> None:
    """A long name that is in the file very many times."""
    num_rows = 2**12
    slides = pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), ["x" * 2**17])
    pq.write_table(pa.table({"slide": slides, "features": [[1.0, 2.0]] * num_rows}), "a.parquet")


def pax_bomb() -> None:
    """A header before a member, longer than the memory allowed; on disk it is a hole in the file."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(BOMB)
    with Path("a.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(len(BOMB) + 10_240)


ZSTD, GZIP = (lambda: pa.compress(BOMB, "zstd", asbytes=True)), (lambda: gzip.compress(BOMB))


@pytest.mark.faults(9, 44)
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda: h5_bomb(zlib.compress(BOMB)),
            r"a\.h5: the chunk of features at \(0, 0\): becomes more than",
        ),
        (lambda: h5_bomb(zlib.compress(BOMB), shuffle=True, fletcher32=True), "becomes more than the 26"),
        (
            lambda: h5_bomb(bytes(8), "szip"),
            r"a\.h5: features is stored with the filter 'szip'; expected gzip",
        ),
        (lambda: zarr_bomb(ZSTD(), zarr.codecs.ZstdCodec(), 3), r"a\.zarr/c/0/0: becomes more than the 26"),
        (lambda: zarr_bomb(GZIP(), zarr.codecs.GzipCodec(), 3), r"a\.zarr/c/0/0: becomes more than the 26"),
        (lambda: zarr_bomb(2 * GZIP(), numcodecs.GZip(), 2), r"a\.zarr/0\.0: becomes more than the 26"),
        (lambda: zarr_bomb(zlib.compress(BOMB), numcodecs.Zlib(), 2), r"a\.zarr/0\.0: becomes more than the"),
        (lambda: zarr_bomb(blosc_bomb(), numcodecs.Blosc(), 2), r"a\.zarr/0\.0: becomes more than the 26"),
        (
            lambda: zarr_bomb(struct.pack("<I", len(BOMB)) + bytes(9), numcodecs.LZ4(), 2),
            r"a\.zarr/0\.0: becomes more than the 26",
        ),
        (
            lambda: zarr_bomb(bytes(9), numcodecs.BZ2(), 2),
            r"a\.zarr: features is stored with the codec 'bz2'; expected \('blosc', 'gzip'",
        ),
        (lambda: parquet_bomb("features"), r"a\.parquet: claims \d+ bytes of features\.list\.element"),
        (lambda: parquet_bomb("coords"), r"a\.parquet: claims \d+ bytes of coords\.list\.element"),
        (lying_parquet_bomb, r"a\.parquet: damaged: .* has 13107200 values, but the footer says 1024"),
        (pax_bomb, "refused, it has a header of 209715200 bytes, more than 1048576"),
    ],
)
def test_a_bomb_is_refused_within_little_memory(write: Callable[[], None], message: str) -> None:
    write()

    def limited() -> None:
        limit_addresses(ROOM)
        read_all()

    assert status_of(fork(limited, Path("said"))) == 1
    assert re.match(f"mhimdist.errors.DataError: .*{message}", Path("said").read_text().splitlines()[-1])


def test_a_long_name_that_stands_there_often_takes_little_memory() -> None:
    text_bomb()

    def limited() -> None:
        limit_addresses(ROOM)
        (slide,) = find_features(Path())
        assert slide == "x" * 2**17

    assert status_of(fork(limited, Path("said"))) == 0, Path("said").read_text()


def test_what_follows_a_record_of_npz_is_not_inflated() -> None:
    npz_bomb()

    def limited() -> None:
        limit_addresses(ROOM)
        read_all()

    assert status_of(fork(limited, Path("said"))) == 0, Path("said").read_text()


def test_what_is_small_may_be_all_alike() -> None:
    refuse_inflation("a", "labels", SMALL_BYTES, 1)
    with pytest.raises(DataError, match=r"^a: claims 16777217 bytes of labels, but stores 1, less than 1 in"):
        refuse_inflation("a", "labels", SMALL_BYTES + 1, 1)
    features, labels = np.random.default_rng(0).standard_normal((30_000, 4)), np.zeros(30_000, np.int64)
    with h5py.File("a.h5", "w") as file:
        file["features"] = features
        file.create_dataset("instance_labels", data=labels, compression="gzip")
    np.savez_compressed("b.npz", features=features, instance_labels=labels)
    table = {"slide": ["c"], "features": [features.tolist()], "instance_labels": [labels.tolist()]}
    pq.write_table(pa.table(table), "c.parquet")
    assert len(find_features(Path())) == 3
    read_all()


FEATURES = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)


def partly_written_h5(**options: object) -> None:
    with h5py.File("a.h5", "w") as file:
        dataset = file.create_dataset("features", (64, 4), "f4", **options)
        dataset[:48] = FEATURES[:48]


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}])
def test_rows_that_were_never_written_are_no_zeros(options: dict) -> None:
    partly_written_h5(chunks=(16, 4), **options)
    with pytest.raises(DataError, match=r"a\.h5: features has 4 chunks, but only 3 were written"):
        read_all()


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_is_missing_in_zarr_is_no_zeros(version: int) -> None:
    array = zarr.create_array("a.zarr", data=FEATURES, chunks=(16, 4), zarr_format=version)
    source = find_features(Path())["a"]
    planned = read_features(source)
    (Path("a.zarr") / array.metadata.encode_chunk_key((2, 0))).unlink()
    with pytest.raises(DataError, match=r"a\.zarr: features has 4 chunks, but only 3 were written"):
        read_features(source)
    with pytest.raises(DataError, match=r"a\.zarr: features has no file (c/2/0|2\.0)"):
        _ = planned.features_ND


@pytest.mark.parametrize("options", [{"fletcher32": True}, {"shuffle": True}, {}])
@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
@pytest.mark.parametrize("chunks", [(1, 4), (7, 4), (16, 3), True])
def test_h5_with_the_usual_filters(chunks: object, compression: str | None, options: dict) -> None:
    with h5py.File("a.h5", "w") as file:
        file.create_dataset("features", data=FEATURES, chunks=chunks, compression=compression, **options)
    read = read_features(find_features(Path())["a"])
    assert np.array_equal(read.features_ND.numpy(), FEATURES)
    assert np.array_equal(torch.cat(list(read.blocks(100))).numpy(), FEATURES)


def test_h5_that_is_compact() -> None:
    with h5py.File("a.h5", "w") as file:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(FEATURES.shape)
        dataset = h5py.h5d.create(file.id, b"features", h5py.h5t.NATIVE_FLOAT, space, settings)
        h5py.Dataset(dataset)[:] = FEATURES
    assert np.array_equal(read_features(find_features(Path())["a"]).features_ND.numpy(), FEATURES)


def chained_headers(path: Path) -> None:
    """Headers that each announce another one, deeper than Python can recurse."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 0
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) * 3000 + bytes(10_240))


def sparse_header(path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.size": "x"}
    info.size = 512
    with tarfile.open(path, "w") as tar:
        tar.addfile(info, io.BytesIO(b"z" * 512))


@pytest.mark.parametrize("write", [chained_headers, sparse_header])
def test_a_tar_that_confuses_its_reader_is_named(write: Callable[[Path], None]) -> None:
    write(Path("a.tar"))
    with pytest.raises(DataError, match=r"^a\.tar: damaged, or not a tar: "):
        find_features(Path())


def write_npz() -> Path:
    np.savez_compressed("a.npz", features=FEATURES, coords=np.zeros((64, 2), int), encoder="uni")
    return Path("a.npz")


def write_stored_npz() -> Path:
    np.savez("a.npz", features=FEATURES, coords=np.zeros((64, 2), int), encoder="uni")
    return Path("a.npz")


def write_npy() -> Path:
    np.save("a.npy", FEATURES)
    return Path("a.npy")


def write_pt() -> Path:
    torch.save({"features": torch.from_numpy(FEATURES), "encoder": "uni"}, "a.pt")
    return Path("a.pt")


def write_array_pt() -> Path:
    torch.save({"features": FEATURES, "encoder": "uni"}, "a.pt")
    return Path("a.pt")


def write_h5() -> Path:
    with h5py.File("a.h5", "w") as file:
        file.create_dataset("features", data=FEATURES, chunks=(16, 4), compression="gzip")
        file["features"].attrs["encoder"] = "uni"
        file.create_dataset("coords", data=np.zeros((64, 2), int), chunks=(1, 2))
    return Path("a.h5")


def write_parquet() -> Path:
    table = pa.table({"slide": ["a", "b"], "label": ["x", "y"], "features": [FEATURES.tolist()] * 2})
    pq.write_table(table, "a.parquet")
    return Path("a.parquet")


def write_tar() -> Path:
    with tarfile.open("a.tar", "w") as tar:
        for name, content in (("a.npy", write_npy()), ("a.json", None), ("b" * 120 + ".pt", write_pt())):
            data = content.read_bytes() if content else b'{"label": "x"}'
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for path in ("a.npy", "a.pt"):
        os.unlink(path)
    return Path("a.tar")


def write_zarr() -> Path:
    zarr.create_array("a.zarr", data=FEATURES, chunks=(16, 4))
    return Path("a.zarr/zarr.json")


@pytest.mark.parametrize(
    "write",
    [
        write_npz,
        write_stored_npz,
        write_npy,
        write_pt,
        write_array_pt,
        write_h5,
        write_parquet,
        write_tar,
        write_zarr,
    ],
)
def test_damage_is_never_a_bare_error_of_a_library(write: Callable[[], Path]) -> None:
    path = write()
    read_all()
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = []
    for number in range(150):
        damaged = bytearray(content)
        if number % 3 == 0:
            del damaged[generator.integers(len(content)) :]
        else:
            # Half of them near either end, where headers and directories are.
            place = generator.integers(len(content) if number % 3 == 1 else min(400, len(content)))
            damaged[place - len(content) * (number % 2)] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            read_all()
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(path.parts[0] in message for message in refused)


@pytest.mark.faults(44)
def test_a_pickle_that_states_a_long_name_is_refused_within_little_memory() -> None:
    """As torch.save wrote before 1.6; read from a file, the name of 4 GiB would be allocated."""
    torch.save({"features": torch.ones(3, 2)}, "a.pt", _use_new_zipfile_serialization=False)
    content = Path("a.pt").read_bytes()
    assert content.count(b"X\x08\x00\x00\x00features") == 1
    Path("a.pt").write_bytes(content.replace(b"X\x08\x00\x00\x00features", b"X\xff\xff\xff\xfffeatures"))

    def attempt() -> None:
        limit_addresses(ROOM)
        with pytest.raises(DataError, match=r"a\.pt: damaged"):
            read_all()

    assert status_of(fork(attempt)) == 0


@pytest.mark.faults(9)
def test_no_flipped_bit_of_a_parquet_footer_ends_the_process() -> None:
    """At 6 of these bits, pyarrow's own view of a column ended it, outside of any exception."""
    lists = {"slide": ["a", "a", "b"], "features": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
    pq.write_table(pa.table(lists), "a.parquet")
    content = Path("a.parquet").read_bytes()
    length = int.from_bytes(content[-8:-4], "little")

    def attempt() -> None:
        for at in range(len(content) - 8 - length, len(content) - 8):
            Path("a.parquet").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            try:
                read_all()
            except DataError as error:
                assert "a.parquet" in str(error)  # noqa: PT017

    assert status_of(fork(attempt)) == 0
