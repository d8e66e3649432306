import io
import math
import re
import tarfile
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhimdist.data.format import (
    Member,
    dali_index,
    escape_key,
    index_name,
    members_of,
    npy_header,
    padded,
    shard_name,
    tar_header,
)


@given(st.text())
def test_keys_are_plain_and_reversible(slide: str) -> None:
    key = escape_key(slide)
    assert re.fullmatch("[A-Za-z0-9_%-]*", key)
    assert unquote(key, errors="strict") == slide


def test_escaping_changes_only_what_it_must() -> None:
    assert escape_key("tumor_001-DX1") == "tumor_001-DX1"
    assert escape_key("TCGA-A1.B3/c d%2E~é") == "TCGA-A1%2EB3%2Fc%20d%252E%7E%C3%A9"


def test_file_names() -> None:
    assert shard_name(7) == "shard-000007.tar"
    assert shard_name(1234567) == "shard-1234567.tar"
    assert index_name(shard_name(7)) == "shard-000007.idx"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<i4", "|u1"])
@pytest.mark.parametrize("shape", [(1,), (3, 2), (44_402, 1024), (0, 5)])
def test_numpy_reads_the_array_header(dtype: str, shape: tuple[int, ...]) -> None:
    header = npy_header(np.dtype(dtype), shape)
    assert len(header) == 128
    file = io.BytesIO(header + bytes(math.prod(shape) * np.dtype(dtype).itemsize))
    array = np.load(file, allow_pickle=False)
    assert (array.shape, array.dtype.str, array.flags.c_contiguous) == (shape, dtype, True)


def test_the_largest_array_header_still_fits() -> None:
    assert len(npy_header(np.dtype("<f4"), (2**63 - 1, 2**31 - 1))) == 128


@pytest.mark.parametrize("name", ["k.features.npy", 300 * "k" + ".json"])
def test_tarfile_reads_the_tar_header(name: str) -> None:
    payload = b"payload"
    archive = tar_header(name, len(payload)) + payload.ljust(512, b"\0") + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (info,) = tar.getmembers()
        assert (info.name, info.size, info.mtime, info.isreg()) == (name, 7, 0, True)
        assert tar.extractfile(info).read() == payload


@given(st.integers(0, 2**40), st.sampled_from([512, 10_240]))
def test_padding_is_the_next_whole_block(num_bytes: int, block: int) -> None:
    assert padded(num_bytes, block) % block == 0
    assert 0 <= padded(num_bytes, block) - num_bytes < block


def test_members_are_what_the_row_says() -> None:
    features = Member("k", "features", 512, 256, 7)
    description = Member("k", "json", 1536, 20, 8)
    row = {
        "key": "k",
        "coords_offset": None,
        "instance_labels_offset": None,
        **features.columns(),
        **description.columns(),
    }
    assert list(members_of(row)) == [features, description]
    assert [features.name, description.name] == ["k.features.npy", "k.json"]


def test_index_names_offset_length_and_member() -> None:
    bags = [
        [Member("a", "features", 512, 256, 0), Member("a", "json", 1536, 20, 0)],
        [Member("b", "json", 2560, 21, 0)],
    ]
    assert (
        dali_index(bags)
        == "v1.2 2\nfeatures.npy 512 256 a.features.npy json 1536 20 a.json\njson 2560 21 b.json\n"
    )
