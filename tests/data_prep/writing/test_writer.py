import errno
import gc
import hashlib
import os
import random
import tarfile
from pathlib import Path
from zlib import crc32

import pytest
import webdataset
from forked import fork, status_of

from data_prep.writing import writer
from data_prep.writing.writer import Bag, Payload, ShardWriter, appearing_whole
from mhimdist.data.format import TAR_OPTIONS, dali_index, members_of, tar_header


def bag(key: str, **payloads: bytes) -> Bag:
    return Bag({"key": key}, {"features": bytes(200), "json": b"{}", **payloads})


def test_a_shard_is_described_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "shard-000003.tar"
    bags = [bag("a", coords=b"coords"), bag(120 * "b", instance_labels=b"labels", features=bytes(513))]
    with ShardWriter(path) as shard:
        rows = [shard.add(item) for item in bags]
    content = path.read_bytes()
    assert shard.summary.model_dump() == {
        "name": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_bags": 2,
    }
    absent = {"coords_offset": None, "instance_labels_offset": None}
    described = [[*members_of(absent | row)] for row in rows]
    with tarfile.open(path) as tar:
        assert tar.getnames() == [member.name for members in described for member in members]
    for item, row, members in zip(bags, rows, described, strict=True):
        assert row["shard"] == path.name
        assert row["features_data_offset"] == row["features_offset"] + 128
        for member in members:
            payload = item.payloads[member.kind]
            header = tar_header(member.name, len(payload))
            assert content[member.offset : member.offset + member.num_bytes] == payload
            assert content[member.offset - len(header) : member.offset] == header
            assert member.crc32 == crc32(payload)
    assert path.with_suffix(".idx").read_text() == dali_index(described)


@pytest.mark.parametrize("chunk_bytes", [64, 800, 2**20])
def test_the_bytes_are_those_of_webdataset(
    chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", chunk_bytes)
    payloads = {"features.npy": random.Random(0).randbytes(5000), "json": b"{}"}
    with webdataset.TarWriter(
        str(tmp_path / "theirs.tar"), encoder=False, compress=False, **TAR_OPTIONS
    ) as theirs:
        for key in ("a", 120 * "b"):
            theirs.write({"__key__": key, **payloads})
    with ShardWriter(tmp_path / "shard-000000.tar") as ours:
        for key in ("a", 120 * "b"):
            content = payloads["features.npy"]
            parts = (content[start : start + 700] for start in range(0, len(content), 700))
            ours.add(Bag({"key": key}, {"features": Payload(len(content), parts), "json": b"{}"}))
    content = (tmp_path / "shard-000000.tar").read_bytes()
    assert content == (tmp_path / "theirs.tar").read_bytes()
    assert ours.summary.sha256 == hashlib.sha256(content).hexdigest()
    assert ours.summary.bytes == len(content)


def test_a_payload_of_another_length_than_announced_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 5 bytes, got 4"), ShardWriter(tmp_path / "x.tar") as shard:
        shard.add(bag("a", coords=Payload(5, [b"four"])))
    assert not [*tmp_path.iterdir()]


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with appearing_whole(out) as folder:
        (folder / "file").write_text("content")
        assert not out.exists()
    assert (out / "file").read_text() == "content"
    assert [*out.parent.iterdir()] == [out]


def test_what_a_killed_process_left_goes_with_the_next_start(tmp_path: Path) -> None:
    def killed(name: str) -> None:
        with appearing_whole(tmp_path / name) as folder:
            (folder / "file").write_text("half")
            os._exit(9)

    assert status_of(fork(lambda: killed("out"))) == 9
    (left,) = tmp_path.iterdir()
    with appearing_whole(tmp_path / "one") as one, appearing_whole(tmp_path / "two") as two:
        assert not left.exists()
        assert one.exists()  # it is still being filled
        (two / "file").write_text("content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(143)])
def test_nothing_appears_after_an_exception(error: BaseException, tmp_path: Path) -> None:
    def fill() -> None:
        with appearing_whole(tmp_path / "out") as folder:
            (folder / "file").write_text("content")
            raise error

    with pytest.raises(type(error)) as error_info:
        fill()
    assert error_info.value is error
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("chunk_bytes", [800, 2**20])
@pytest.mark.parametrize("room", [0, 100, 700, 2048, 12_000, 19_000])
def test_a_full_disk_names_the_folder_and_leaves_nothing(
    room: int, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnFullDisk(writer._HashingFile):
        def _write_now(self, view: memoryview) -> None:
            if self.num_bytes + len(view) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            super()._write_now(view)

    def fill() -> None:
        with appearing_whole(tmp_path / "out") as folder, ShardWriter(folder / "shard-000000.tar") as shard:
            for i in range(9):
                shard.add(bag(str(i)))

    monkeypatch.setattr(writer, "_HashingFile", OnFullDisk)
    monkeypatch.setattr(writer, "CHUNK_BYTES", chunk_bytes)
    with pytest.raises(OSError, match=r"No space left on device: '.*/out'"):
        fill()
    gc.collect()  # a file or tar that was left open would complain here
    assert not [*tmp_path.iterdir()]
