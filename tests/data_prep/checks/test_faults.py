"""Damage of every kind, and hostile members: found, and named by file, member and bytes."""

import errno
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from feature_folders import forge_manifest, shard_folder

from data_prep import verify as verify_module
from data_prep.checks import faults as faults_module
from data_prep.checks.faults import Fault, verify
from data_prep.verify import main
from mhimdist.data.format import index_name
from mhimdist.data.manifest import MANIFEST_NAME, Manifest
from mhimdist.errors import ManifestError
from mhimdist.process import run


def put_member(path: Path, offset: int, info: tarfile.TarInfo, payload: bytes = b"") -> None:
    """Insert a member into a tar at a byte offset."""
    member = info.tobuf(tarfile.GNU_FORMAT) + payload.ljust(-(-len(payload) // 512) * 512, b"\0")
    content = path.read_bytes()
    path.write_bytes(content[:offset] + member + content[offset:])


def bless(shards: Path, shard: str) -> None:
    """Make the manifest agree with a shard's length and hash, as an attacker who swapped it would."""
    content = (shards / shard).read_bytes()

    def update(info: dict) -> None:
        (entry,) = (entry for entry in info["shards"] if entry["name"] == shard)
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    forge_manifest(shards, info=update)


def test_what_was_written_has_no_faults(shards: Path) -> None:
    read = []
    assert verify(shards, on_bytes=read.append) == []
    assert sum(read) == sum(path.stat().st_size for path in shards.glob("*.tar"))


def test_payloads_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults_module, "CHUNK_BYTES", 1000)
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features/a.npy", np.random.default_rng(0).random((321, 8)))
    (tmp_path / "labels.csv").write_text("slide,label\na,x\n")
    shards = shard_folder(tmp_path)
    assert verify(shards) == []
    path = shards / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    (fault,) = verify(shards)
    assert fault.member == "a.features.npy"


@pytest.mark.faults(1, 2)
def test_every_flipped_bit_is_found_where_it_is(shards: Path, pristine: dict[str, bytes]) -> None:
    generator = np.random.default_rng(0)
    names = sorted(name for name in pristine if name.endswith(".tar"))
    for seed in range(300):
        name = names[seed % len(names)]
        offset = int(generator.integers(len(pristine[name])))
        flipped = bytearray(pristine[name])
        flipped[offset] ^= 1 << generator.integers(8)
        (shards / name).write_bytes(flipped)
        faults = verify(shards)
        assert {fault.file for fault in faults} == {name}
        assert any(fault.start <= offset < fault.end for fault in faults)
        (shards / name).write_bytes(pristine[name])


@pytest.mark.faults(1)
def test_a_flipped_payload_is_named(shards: Path) -> None:
    row = Manifest.read(shards).rows.to_pylist()[1]
    content = bytearray((shards / row["shard"]).read_bytes())
    content[row["features_offset"] + 200] ^= 1
    (shards / row["shard"]).write_bytes(content)
    (fault,) = verify(shards)
    start, end = row["features_offset"], row["features_offset"] + row["features_bytes"]
    got = zlib.crc32(content[start:end])
    what = f"expected a payload of crc32 {row['features_crc32']:08x}, got {got:08x}"
    assert fault == Fault(row["shard"], what, f"{row['key']}.features.npy", start, end)
    assert str(fault) == (
        f"{row['shard']}, member '{row['key']}.features.npy', bytes {start} to {end}: {what}"
    )


@pytest.mark.faults(3)
def test_every_truncation_is_found(shards: Path, pristine: dict[str, bytes]) -> None:
    name = "shard-000000.tar"
    whole = pristine[name]
    for length in range(0, len(whole), 512):
        (shards / name).write_bytes(whole[:length])
        faults = verify(shards)
        assert faults[0] == Fault(name, f"expected {len(whole)} bytes, got {length}")
        assert any("cut off" in fault.what for fault in faults[1:])


@pytest.mark.faults(4)
def test_missing_surplus_and_copied_shards_are_found(shards: Path, pristine: dict[str, bytes]) -> None:
    (shards / "shard-000000.tar").unlink()
    (shards / "shard-000001.tar").write_bytes(pristine["shard-000002.tar"])
    (shards / "shard-000009.tar").write_bytes(b"")
    faults = verify(shards)
    assert Fault("shard-000000.tar", "missing") in faults
    assert Fault("shard-000009.tar", "not in the manifest") in faults
    assert any(
        fault.file == "shard-000001.tar" and "expected its tar header" in fault.what for fault in faults
    )
    assert not any(fault.file == "shard-000002.tar" for fault in faults)


def test_a_bad_manifest_is_an_error(shards: Path) -> None:
    content = (shards / MANIFEST_NAME).read_bytes()
    (shards / MANIFEST_NAME).write_bytes(content[:-100])
    with pytest.raises(ManifestError):
        verify(shards)


def test_faults_of_the_index_are_found(shards: Path) -> None:
    for shard in ("shard-000000.tar", "shard-000001.tar", "shard-000002.tar"):
        assert (shards / index_name(shard)).exists()
    first, second, third = (shards / index_name(f"shard-00000{i}.tar") for i in range(3))
    first.unlink()
    lines = second.read_text().splitlines()
    changed = lines[2].replace("features.npy ", "features.npy 9", 1)
    second.write_text("\n".join([*lines[:2], changed, ""]))
    third.write_text(third.read_text() + "more")
    assert verify(shards) == [
        Fault(first.name, "missing"),
        Fault(second.name, f"line 3: expected {lines[2].encode()!r}, got {changed.encode()!r}"),
        Fault(third.name, "line 3: expected b'', got b'm'"),
    ]


def _member(name: str, type_: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type_, link, size
    return info


class Malicious:
    """Leaves a folder behind wherever it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


@pytest.mark.faults(6, 8)
@pytest.mark.parametrize("place", ["front", "middle", "end"])
@pytest.mark.parametrize("blessed", [False, True])
@pytest.mark.parametrize(
    ("info", "what"),
    [
        (_member("x.pth", size=len(pickle.dumps(Malicious()))), "'x.pth' (file, "),
        (_member("../../x.json"), "'../../x.json' (file, 0 bytes)"),
        (_member("/etc/cron.d/x"), "'/etc/cron.d/x' (file, 0 bytes)"),
        (
            _member("x.json", tarfile.SYMTYPE, "/etc/passwd"),
            "'x.json' (symbolic link to '/etc/passwd', 0 bytes)",
        ),
        (_member("x.json", tarfile.LNKTYPE, "/etc/passwd"), "'x.json' (hard link to '/etc/passwd', 0 bytes)"),
        (_member("x", tarfile.CHRTYPE), "'x' (device, 0 bytes)"),
        (_member("x", tarfile.FIFOTYPE), "'x' (pipe, 0 bytes)"),
        (_member("x", tarfile.DIRTYPE), "'x' (folder, 0 bytes)"),
        (_member("x", tarfile.GNUTYPE_SPARSE), "'x' (of type b'S', 0 bytes)"),
    ],
)
def test_hostile_members_are_named_and_not_executed(
    info: tarfile.TarInfo,
    what: str,
    place: str,
    blessed: bool,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shard = "shard-000001.tar"
    rows = Manifest.read(shards).rows_of_shard(shard)
    last = rows[-1]["json_offset"] + 512
    offset = {"front": 0, "middle": rows[0]["json_offset"] + 512, "end": last}[place]
    put_member(shards / shard, offset, info, pickle.dumps(Malicious()) if info.size else b"")
    if blessed:
        bless(shards, shard)
    faults = verify(shards)
    named = [fault for fault in faults if fault.what.startswith("not in the manifest: ")]
    (fault,) = named
    assert what in fault.what
    assert (fault.file, fault.start) == (shard, offset)
    assert sorted(os.listdir()) == ["shards"]


def test_a_member_put_in_the_place_of_another_is_named(shards: Path) -> None:
    shard = "shard-000000.tar"
    row = Manifest.read(shards).rows_of_shard(shard)[0]
    content = bytearray((shards / shard).read_bytes())
    start = row["json_offset"] - 512
    link = _member(f"{row['key']}.json", tarfile.SYMTYPE, "/etc/passwd")
    content[start : start + 512] = link.tobuf(tarfile.GNU_FORMAT)
    (shards / shard).write_bytes(content)
    bless(shards, shard)
    faults = verify(shards)
    what = f"'{row['key']}.json' (symbolic link to '/etc/passwd', 0 bytes)"
    assert any(fault.what == f"expected its tar header, found {what}" for fault in faults)
    assert any(fault.what == f"not in the manifest: {what}" for fault in faults)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0"])
def test_a_forged_size_neither_loops_nor_allocates(size: bytes, shards: Path) -> None:
    path = shards / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[124:136] = size
    content[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(content[:512]))[0]
    path.write_bytes(content)
    bless(shards, path.name)
    assert any(fault.start == 0 and "expected its tar header" in fault.what for fault in verify(shards))


def _replace(shards: Path, kind: str, old: bytes, new: bytes) -> tuple[str, str]:
    """Change a member of bag 0 and all checksums of it; return its shard and key."""
    row = Manifest.read(shards).rows.to_pylist()[0]
    start = row[f"{kind}_offset"]
    path, payload = shards / row["shard"], slice(start, start + row[f"{kind}_bytes"])
    content = bytearray(path.read_bytes())
    assert len(old) == len(new)
    assert old in content[payload]
    content[payload] = content[payload].replace(old, new)
    path.write_bytes(content)
    crc32 = zlib.crc32(content[payload])
    forge_manifest(shards, rows=lambda rows: rows[0].update({f"{kind}_crc32": crc32}))
    bless(shards, row["shard"])
    return row["shard"], row["key"]


def test_a_forged_array_header_is_found(shards: Path) -> None:
    shard, key = _replace(shards, "features", b"'<f2'", b"'|O2'")
    (fault,) = verify(shards)
    assert (fault.file, fault.member) == (shard, f"{key}.features.npy")
    assert 'expected the array header b"\\x93NUMPY' in fault.what
    assert "'|O2'" in fault.what


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b'"case": "case ', b'"case": "cafe ', "got {'slide': "),
        (b'"slide"', b'"slyde"', "got none: 'slide'"),
        (b"{", b"[", "got none: "),
    ],
)
def test_json_that_tells_another_story_is_found(old: bytes, new: bytes, what: str, shards: Path) -> None:
    shard, key = _replace(shards, "json", old, new)
    (fault,) = verify(shards)
    assert (fault.file, fault.member) == (shard, f"{key}.json")
    assert what in fault.what


def test_a_member_that_the_manifest_has_elsewhere_is_found(shards: Path) -> None:
    def move(rows: list[dict]) -> None:
        rows[0]["json_offset"] += 512

    shard = Manifest.read(shards).rows["shard"][0].as_py()
    forge_manifest(shards, rows=move)
    index_fault, fault = verify(shards)
    assert index_fault.file == index_name(shard)
    assert fault.file == shard
    assert "but the manifest has it at" in fault.what


def test_a_key_that_is_not_its_slides_is_found(shards: Path) -> None:
    forge_manifest(shards, rows=lambda rows: rows[0].update(slide="another"))
    assert any(
        "expected the key 'another' for slide 'another', got" in fault.what for fault in verify(shards)
    )


def test_the_command_says_that_all_is_well(shards: Path, capsys: pytest.CaptureFixture) -> None:
    run(partial(main, [str(shards)]))
    captured = capsys.readouterr()
    num_bytes = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert captured.out.startswith(
        f"{shards}: 6 bags, {num_bytes / 1000:.1f} kB (shards: 3): all as written ("
    )
    assert captured.err == ""


def test_the_command_lists_faults_and_fails(shards: Path, capsys: pytest.CaptureFixture) -> None:
    path = shards / "shard-000000.tar"
    put_member(path, 0, _member("[bold]evil.pth"))
    with pytest.raises(SystemExit) as exit_info:
        run(partial(main, [str(shards)]))
    assert exit_info.value.code == 1
    captured = capsys.readouterr()
    assert (
        "member '[bold]evil.pth', bytes 0 to 512: not in the manifest: '[bold]evil.pth' (file" in captured.out
    )
    num_faults = len(verify(shards))
    assert captured.err == f"error: {shards} is not as it was written (faults: {num_faults}, files: 1)\n"


def test_the_command_cuts_a_long_list(
    shards: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "MAX_LISTED", 2)
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(SystemExit):
        run(partial(main, [str(shards)]))
    assert capsys.readouterr().out == "shard-000000.tar: missing\nshard-000001.tar: missing\nand 1 more\n"


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(partial(main, [str(tmp_path / "nowhere")]))
    assert exit_info.value.code == 1
    assert capsys.readouterr().err.startswith("error: no manifest at ")


def test_no_workers_are_refused(shards: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(partial(main, [str(shards), "--workers", "0"]))
    assert exit_info.value.code == 2
    assert "--workers: expected a whole number of at least 1, got '0'" in capsys.readouterr().err


@pytest.mark.faults(2)
def test_the_hash_finds_what_the_rest_cannot(shards: Path) -> None:
    forge_manifest(shards, info=lambda info: info["shards"][1].update(sha256=64 * "0"))
    (fault,) = verify(shards)
    assert fault.file == "shard-000001.tar"
    assert fault.what.startswith(f"expected sha256 {64 * '0'}, got ")


def test_the_tar_is_one_for_others(pristine: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=io.BytesIO(pristine["shard-000000.tar"])) as tar:
        assert all(info.isreg() and info.mode == 0o644 and info.mtime == 0 for info in tar)


def test_threads_find_the_same_in_the_same_order(shards: Path) -> None:
    for name in ("shard-000000.tar", "shard-000002.tar"):
        content = bytearray((shards / name).read_bytes())
        content[700] ^= 1
        (shards / name).write_bytes(content)
    faults = verify(shards, workers=1)
    assert [fault.file for fault in faults] == ["shard-000000.tar", "shard-000002.tar"]
    assert verify(shards, workers=3) == faults


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fails_names_its_shards_and_the_rest_is_looked_at(
    workers: int, shards: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(faults_module._HashingReader):
        def take(self, num_bytes: int) -> bytes:
            if "shard-000001" in self._file.name and self.position > 5_000:
                raise OSError(errno.EIO, "Input/output error")
            return super().take(num_bytes)

    monkeypatch.setattr(faults_module, "_HashingReader", Failing)
    content = bytearray((shards / "shard-000002.tar").read_bytes())
    content[700] ^= 1
    (shards / "shard-000002.tar").write_bytes(content)
    (shards / "shard-000000.idx").unlink()
    (shards / "shard-000000.idx").mkdir()
    faults = verify(shards, workers=workers)
    assert faults[:2] == [
        Fault("shard-000000.idx", "cannot be read: Is a directory"),
        Fault("shard-000001.tar", "cannot be read: Input/output error"),
    ]
    assert {fault.file for fault in faults[2:]} == {"shard-000002.tar"}
    with pytest.raises(SystemExit):
        run(partial(main, [str(shards)]))
    assert "shard-000001.tar: cannot be read: Input/output error\n" in capsys.readouterr().out
