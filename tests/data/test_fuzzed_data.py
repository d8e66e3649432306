"""Forged manifests and files of splits: our errors alone come out of the readers."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from feature_folders import shard_folder, write_features
from fuzzing import CASES, CHANGES, changed, forged, fuzz

from mhimdist.data.manifest import MANIFEST_NAME, Manifest
from mhimdist.data.split_files import folds_in
from mhimdist.data.splits import Split


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("data")
    write_features(folder)
    return (shard_folder(folder) / MANIFEST_NAME).read_bytes()


@pytest.mark.faults(5)
@CASES
def test_forged_manifests(
    manifest: bytes, num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def read(content: bytes) -> None:
        Path(MANIFEST_NAME).write_bytes(content)
        Manifest.read(Path())

    fuzz(num_cases, forged([manifest]), read)


@pytest.mark.faults(5)
@CASES
def test_forged_descriptions_in_manifests(
    manifest: bytes, num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The description is JSON within Parquet, which damage of the whole file hardly reaches."""
    monkeypatch.chdir(tmp_path)
    Path(MANIFEST_NAME).write_bytes(manifest)
    table = pq.read_table(MANIFEST_NAME)

    def read(changes: list) -> None:
        metadata = dict(table.schema.metadata)
        metadata[b"mhimdist.manifest"] = changed(metadata[b"mhimdist.manifest"], changes)
        pq.write_table(table.replace_schema_metadata(metadata), MANIFEST_NAME)
        Manifest.read(Path())

    fuzz(num_cases, CHANGES, read)


SPLITS = {
    "s.csv": [
        b"slide,fold\na,1\nb,2\nc,1\n",
        b",train,val,test\n0,a,b,c\n1,d,,\n",
        b"slide,set\na,train\nb,test\n",
    ],
    "s.json": [
        b'{"train": ["a", "b"], "validation": ["c"], "test": ["d"]}',
        b'[{"train": ["a"], "val": ["b"], "test": ["c"]}, {"train": ["b"], "val": ["a"], "test": ["c"]}]',
    ],
}


@pytest.mark.faults(17)
@CASES
@pytest.mark.parametrize("name", SPLITS)
def test_forged_splits(name: str, num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read(content: bytes) -> None:
        Path(name).write_bytes(content)
        folds_in(Path(name))

    fuzz(num_cases, forged(SPLITS[name]), read)


@pytest.mark.faults(42)
@CASES
def test_forged_splits_of_ours(num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Split(("a", "b"), ("c",), ("d",)).save(tmp_path / "split.json")

    def read(content: bytes) -> None:
        Path("split.json").write_bytes(content)
        Split.load(Path("split.json"))

    fuzz(num_cases, forged([(tmp_path / "split.json").read_bytes()]), read)
