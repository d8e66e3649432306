"""Damaged shards and indexes rewritten from their features, to the same bytes."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from feature_folders import write_features

from data_prep.checks.faults import Fault, verify
from data_prep.checks.repair import repair
from data_prep.verify import main
from mhimdist.data.manifest import Manifest
from mhimdist.process import run


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The features that `shards` was made of."""
    write_features(tmp_path / "sources")
    return tmp_path / "sources/features"


def test_damage_of_every_kind_is_repaired(shards: Path, pristine: dict[str, bytes], sources: Path) -> None:
    content = bytearray(pristine["shard-000000.tar"])
    content[1000] ^= 1
    (shards / "shard-000000.tar").write_bytes(content)
    (shards / "shard-000001.tar").unlink()
    (shards / "shard-000002.tar").write_bytes(pristine["shard-000002.tar"][:600])
    (shards / "shard-000000.idx").write_text("nonsense")
    (shards / "shard-000002.idx").unlink()
    repaired, left = repair(shards, verify(shards), sources)
    assert repaired == [
        *(f"shard-00000{i}.tar" for i in range(3)),
        "shard-000000.idx",
        "shard-000002.idx",
    ]
    assert left == []
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == pristine


def test_what_is_not_in_the_manifest_is_left(shards: Path, tmp_path: Path) -> None:
    (shards / "shard-000009.tar").write_bytes(b"")
    fault = Fault("shard-000009.tar", "not in the manifest")
    assert repair(shards, verify(shards), tmp_path / "nowhere") == ([], [fault])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_repaired_is_left_with_the_reason(
    workers: int, shards: Path, sources: Path, pristine: dict[str, bytes]
) -> None:
    (shards / "shard-000001.tar").unlink()
    (shards / "shard-000002.tar").write_bytes(b"")
    row = Manifest.read(shards).rows_of_shard("shard-000001.tar")[0]
    path = sources / f"{row['slide']}.npy"
    np.save(path, np.load(path) + 1)
    repaired, (fault,) = repair(shards, verify(shards), sources, workers=workers)
    assert repaired == ["shard-000002.tar"]
    assert fault.file == "shard-000001.tar"
    assert fault.what.startswith(
        f"cannot be repaired: {sources} yields other bytes than the manifest lists: "
    )
    path.unlink()
    for sidecar in (*sources.glob("*.coords.npy"), *sources.glob("*.instance_labels.npy")):
        sidecar.unlink()
    repaired, (fault,) = repair(shards, verify(shards), sources, workers=workers)
    assert repaired == []
    assert fault.what == f"cannot be repaired: {sources} has no features of {row['slide']!r}"
    assert sorted(path.name for path in shards.parent.iterdir()) == ["shards", "sources"]
    assert not (shards / "shard-000001.tar").exists()
    assert (shards / "shard-000002.tar").read_bytes() == pristine["shard-000002.tar"]


def test_the_command_repairs(shards: Path, sources: Path, capsys: pytest.CaptureFixture) -> None:
    (shards / "shard-000001.tar").unlink()
    run(partial(main, [str(shards), "--repair", str(sources), "--workers", "2"]))
    assert capsys.readouterr().out.splitlines()[:2] == [
        "shard-000001.tar: missing",
        "repaired: shard-000001.tar",
    ]
    (shards / "shard-000009.tar").write_bytes(b"")
    with pytest.raises(SystemExit) as exit_info:
        run(partial(main, [str(shards), "--repair", str(sources)]))
    assert exit_info.value.code == 1
    captured = capsys.readouterr()
    assert "not repaired: shard-000009.tar: not in the manifest" in captured.out
    assert "(faults: 1, files: 1)" in captured.err
