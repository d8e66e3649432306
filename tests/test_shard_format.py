"""docs/shard_format.md: its reader reads every kind of data set, and the page names all that there is."""

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from case_shards import case_shards
from encoder_folders import shard_encoders, write_encoders
from feature_folders import normal_shards, shard_folder, write_features
from job_scripts import ROOT

from data_prep import shard as shard_module
from data_prep.shard import shard
from mhimdist.data.format import EXTENSIONS, FEATURE_DTYPES, npy_header
from mhimdist.data.manifest import DatasetInfo, Manifest, ShardFile, rows_schema
from mhimdist.data.shards import BagShards
from mhimdist.data.standardization import Standardization
from mhimdist.data.targets import TaskInfo

PAGE = (ROOT / "docs" / "shard_format.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    return scope


def plain(folder: Path, **options: Any) -> Path:
    write_features(folder)
    return shard_folder(folder, **options)


def of_task(folder: Path, table: str, *options: str) -> Path:
    for i in range(8):
        (folder / "features").mkdir(parents=True, exist_ok=True)
        np.save(folder / "features" / f"s{i}.npy", np.full((2 + i, 4), i, np.float32))
    (folder / "labels.csv").write_text(table)
    command = ["--features", str(folder / "features"), "--labels", str(folder / "labels.csv")]
    shard_module.main([*command, "--out", str(folder / "shards"), *options])
    return folder / "shards"


def survival(folder: Path) -> Path:
    lines = [f"s{i},p{i},{i + 1.5},{i % 2}" for i in range(8)]
    table = "\n".join(["slide,case,OS_MONTHS,OS_STATUS", *lines])
    return of_task(folder, table, "--task", "survival")


def multilabel(folder: Path) -> Path:
    lines = [f"s{i},{i % 2},{'' if i < 2 else i // 4}" for i in range(8)]
    table = "\n".join(["slide,tp53,kras", *lines])
    return of_task(folder, table, "--task", "multilabel", "--target-column", "tp53,kras")


def grades(folder: Path) -> Path:
    table = "\n".join(["slide,label", *(f"s{i},G{1 + i % 3}" for i in range(8))])
    return of_task(folder, table, "--task", "ordinal")


def encoders(folder: Path) -> Path:
    write_encoders(folder, "uni", "gigapath")
    shard_encoders(folder, "uni", "gigapath")
    return folder / "shards"


def appended(folder: Path) -> Path:
    shards = plain(folder)
    (folder / "more").mkdir()
    np.save(folder / "more" / "new.npy", np.ones((2, 8), np.float32))
    (folder / "more.csv").write_text("slide,label\nnew,normal\n")
    shard(folder / "more", folder / "more.csv", shards, append=True)
    return shards


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "float16, coordinates, instance labels, strange names": plain,
    "float32": lambda folder: plain(folder, dtype="float32"),
    "bfloat16": lambda folder: plain(folder, dtype="bfloat16"),
    "one bag per shard": lambda folder: plain(folder, shard_bytes=1),
    "several cases": lambda folder: case_shards(folder, coords=True)[0],
    "merged types": lambda folder: normal_shards(folder, "float16", "float32"),
    "appended": appended,
    "standardised": lambda folder: plain(folder, standardize=True),
    "survival": survival,
    "multilabel": multilabel,
    "ordinal": grades,
    "several encoders": encoders,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reader_of_the_page_reads(variant: str, reader: dict[str, Any], tmp_path: Path) -> None:
    shards = VARIANTS[variant](tmp_path)
    manifest = Manifest.read(shards)
    seen = 0
    sources = {name: BagShards(shards, features=name or None) for name in manifest.each}
    for about, features_ND, coords_N2, labels_N, label, name in reader["bags_of"](shards):
        bags = sources[name]
        row = bags.slides.index(about["slide"])
        assert bags.cases[row] == about["case"]
        assert np.array_equal(features_ND.astype(np.float32), bags.load([row]).features_TD.numpy())
        for found, expected in ((coords_N2, bags.coords(row)), (labels_N, bags.instance_labels(row))):
            assert (found is None) == (expected is None)
            assert found is None or np.array_equal(found, expected)
        if bags.targets_NK.shape[1]:
            assert np.array_equal(np.array(label, float), bags.targets_NK[row], equal_nan=True)
        else:
            assert label == bags.labels_N[row]
        seen += 1
    assert seen == len(manifest.rows)


def test_the_reader_of_the_page_refuses_what_was_changed(reader: dict[str, Any], tmp_path: Path) -> None:
    shards = plain(tmp_path)
    path = shards / Manifest.read(shards).info.shards[-1].name
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is not the file that the manifest lists"):
        list(reader["bags_of"](shards))


def test_the_reader_of_the_page_is_short_and_imports_nothing_of_ours() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 60
    imports = [node for node in ast.walk(ast.parse(CODE)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.name for node in imports for alias in node.names} == {
        "hashlib",
        "json",
        "numpy",
        "tarfile",
    }


def named_on_the_page() -> set[str]:
    """Fields in the first cells of the page's tables; `.deviation` beside `standardized.*.mean` counts."""
    cells = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    return {re.split(r"[.\]]", name)[-1] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_field_of_the_manifest_is_on_the_page() -> None:
    named = named_on_the_page()
    for model in (DatasetInfo, ShardFile, TaskInfo, Standardization):
        assert set(model.model_fields) <= named, model
    task = TaskInfo(name="regression", columns=("x",))
    assert set(rows_schema(task, named=True).names) <= named
    for extension in EXTENSIONS.values():
        assert f"| `{extension}` |" in PAGE
    for dtype in FEATURE_DTYPES:
        assert f"`{dtype}`" in PAGE


def test_the_bytes_of_a_header_are_those_of_the_page() -> None:
    text = b"{'descr': '<f2', 'fortran_order': False, 'shape': (3, 8), }"
    expected = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117) + b"\n"
    assert npy_header(FEATURE_DTYPES["float16"], (3, 8)) == expected


def test_a_folder_with_an_unlisted_shard_is_refused_as_the_page_says(tmp_path: Path) -> None:
    shards = plain(tmp_path)
    shutil.copy(shards / "shard-000000.tar", shards / "shard-000099.tar")
    with pytest.raises(Exception, match=r"shard-000099\.tar: not in the manifest"):
        BagShards(shards)
