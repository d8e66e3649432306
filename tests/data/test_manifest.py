import json
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_folders import CLASSES, SLIDES, forge_manifest, shard_folder, write_features
from forked import fork, limit_addresses, status_of

from mhimdist.data import manifest as manifest_module
from mhimdist.data.format import escape_key
from mhimdist.data.manifest import MANIFEST_NAME, ROWS_SCHEMA, DatasetInfo, Manifest, ShardFile, settled
from mhimdist.errors import ManifestError


def small_manifest() -> Manifest:
    """Two bags of 3 and 5 instances of 4 float16 features, the second with coordinates."""
    row = {
        "key": "a",
        "slide": "a",
        "case": "p",
        "label": 0,
        "shard": "shard-000000.tar",
        "num_instances": 3,
        "num_features": 4,
        "dtype": "float16",
        "features_offset": 512,
        "features_bytes": 128 + 24,
        "features_crc32": 1,
        "features_data_offset": 640,
        "json_offset": 1536,
        "json_bytes": 30,
        "json_crc32": 2,
    }
    other = row | {
        "key": "b%2E",
        "slide": "b.",
        "label": 1,
        "num_instances": 5,
        "coords_offset": 2560,
        "coords_bytes": 128 + 40,
        "coords_crc32": 3,
        "features_offset": 3584,
        "features_bytes": 128 + 40,
        "features_data_offset": 3712,
    }
    shard = ShardFile(name="shard-000000.tar", bytes=10_240, sha256=64 * "0", num_bags=2)
    info = DatasetInfo(
        name="small", classes=("x", "y"), synthetic=True, description="made up", shards=(shard,)
    )
    return Manifest(info, pa.Table.from_pylist([row, other], ROWS_SCHEMA))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return shard_folder(tmp_path, name="small", description="of a test")


def rewrite(path: Path, change) -> None:
    """Pass the Parquet table through `change`, but keep its metadata, including the hash."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = small_manifest()
    written.write(tmp_path)
    read = Manifest.read(tmp_path)
    assert read.info == written.info
    assert read.rows.equals(written.rows)
    assert read.content_sha256 == written.content_sha256


def test_the_hash_is_of_the_content_and_not_of_its_encoding() -> None:
    manifest = small_manifest()
    # A fixed value: a change of the canonical form would invalidate every existing data set.
    assert manifest.content_sha256 == "be9c056aaa930e222c75342245a850ec5577c0547c69d9e9fde9b372087f4072"
    halves = pa.concat_tables([manifest.rows[:1], manifest.rows[1:]])
    assert Manifest(manifest.info, halves).content_sha256 == manifest.content_sha256


def test_it_describes_the_bags(shards: Path) -> None:
    manifest = Manifest.read(shards)
    assert manifest.info.name == "small"
    assert manifest.info.classes == CLASSES
    assert manifest.info.description == "of a test"
    assert not manifest.info.synthetic
    rows = manifest.rows.to_pylist()
    assert {row["slide"]: row["num_instances"] for row in rows} == {
        slide: 3 + 2 * i for i, slide in enumerate(SLIDES)
    }
    assert all(row["key"] == escape_key(row["slide"]) for row in rows)
    by_shard = [manifest.rows_of_shard(shard.name) for shard in manifest.info.shards]
    assert len(by_shard) > 1
    assert [row for part in by_shard for row in part] == rows


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no manifest at .*nowhere.*manifest\.parquet"):
        Manifest.read(tmp_path / "nowhere")


@pytest.mark.faults(5)
@pytest.mark.parametrize("column", ROWS_SCHEMA.names)
def test_an_edit_of_any_column_is_noticed(column: str, tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[1] = (values[1] or 0) + 1 if not isinstance(values[1], str) else values[1] + "x"
        index = table.schema.get_field_index(column)
        return table.set_column(
            index, ROWS_SCHEMA.field(column), pa.array(values, ROWS_SCHEMA.field(column).type)
        )

    manifest = small_manifest()
    manifest.write(tmp_path)
    rewrite(tmp_path / MANIFEST_NAME, change)
    expected = f"expected content_sha256 {manifest.content_sha256}, got [0-9a-f]{{64}}"
    with pytest.raises(ManifestError, match=expected):
        Manifest.read(tmp_path)


@pytest.mark.faults(5)
def test_an_edit_of_the_description_is_noticed(tmp_path: Path) -> None:
    small_manifest().write(tmp_path)
    path = tmp_path / MANIFEST_NAME
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    metadata[b"mhimdist.manifest"] = metadata[b"mhimdist.manifest"].replace(b"made up", b"measured")
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(ManifestError, match="was changed: expected content_sha256"):
        Manifest.read(tmp_path)


@pytest.mark.faults(5)
def test_a_flipped_bit_is_noticed_or_changes_nothing(shards: Path) -> None:
    path = shards / MANIFEST_NAME
    content = path.read_bytes()
    expected = Manifest.read(shards).content_sha256
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[generator.integers(len(content))] ^= 1 << generator.integers(8)
        path.write_bytes(flipped)
        try:
            assert Manifest.read(shards).content_sha256 == expected
        except ManifestError:
            refused += 1
    assert refused > 100


@pytest.mark.faults(5)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"schema_version": 1', b'"schema_version": 2', "expected schema version 1, got 2"),
        (b'"schema_version": 1', b'"schema": 1', "the description of the data set is damaged"),
        (b'"synthetic"', b'"surprise"', "synthetic: Field required"),
        (b"shard-000000.tar", b"../../etc/passwd", r"shards\.0\.name: .*got '../../etc/passwd'"),
        (b'"bytes": 10240', b'"bytes": -1', r"shards\.0\.bytes: .*got -1"),
        (b"}", b"", "the description of the data set is damaged"),
    ],
)
def test_an_unknown_description_is_refused(old: bytes, new: bytes, message: str, tmp_path: Path) -> None:
    small_manifest().write(tmp_path)
    path = tmp_path / MANIFEST_NAME
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    assert old in metadata[b"mhimdist.manifest"]
    metadata[b"mhimdist.manifest"] = metadata[b"mhimdist.manifest"].replace(old, new)
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(ManifestError, match=message):
        Manifest.read(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST_NAME
    for content in (b"", b"PAR1", b"not Parquet at all"):
        path.write_bytes(content)
        with pytest.raises(ManifestError, match="cannot be read as Parquet"):
            Manifest.read(tmp_path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ManifestError, match="is not the manifest of a data set"):
        Manifest.read(tmp_path)


@pytest.mark.faults(9)
def test_a_bomb_is_not_inflated(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = small_manifest()
    columns = [pa.repeat(value, 10**5) for value in manifest.rows.to_pylist()[0].values()]
    rows = pa.Table.from_arrays(
        [c.cast(f.type) for c, f in zip(columns, ROWS_SCHEMA, strict=True)], schema=ROWS_SCHEMA
    )
    monkeypatch.setattr(manifest_module, "_check_rows", lambda rows, info: None)
    Manifest(manifest.info, rows).write(tmp_path)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ManifestError, match=r"claims 100000 bags in \d+ bytes$"):
        Manifest.read(tmp_path)
    monkeypatch.setattr(manifest_module, "MAX_BYTES", 100)
    with pytest.raises(ManifestError, match="has more than 100 bytes, too many for a manifest"):
        Manifest.read(shards)


def test_text_is_not_repeated_at_will(tmp_path: Path) -> None:
    manifest = small_manifest()
    first, *_ = manifest.rows.to_pylist()
    rows = [first | {"key": str(i), "slide": "x" * 2**17} for i in range(2**10)]
    info = manifest.info.model_copy(
        update={"shards": (manifest.info.shards[0].model_copy(update={"num_bags": len(rows)}),)}
    )
    Manifest(info, pa.Table.from_pylist(rows, ROWS_SCHEMA)).write(tmp_path)
    assert (tmp_path / MANIFEST_NAME).stat().st_size < 2**18

    def limited() -> None:
        limit_addresses(2**26)
        Manifest.read(tmp_path)

    assert status_of(fork(limited, tmp_path / "said")) == 1
    said = (tmp_path / "said").read_text().splitlines()[-1]
    assert re.search(r"ManifestError: .*manifest\.parquet repeats its text to more than \d+ bytes$", said)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    small_manifest().write(tmp_path)
    rewrite(tmp_path / MANIFEST_NAME, lambda table: table.drop_columns(["case"]))
    with pytest.raises(ManifestError, match=r"they differ in .*case: string not null"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("key", "a", "it lists a key twice"),
        ("shard", "shard-000001.tar", "'b%2E' is in a shard that is not listed"),
        ("label", 2, "'b%2E' has no label in"),
        ("label", -1, "'b%2E' has no label in"),
        ("num_instances", 0, "'b%2E' has no instances"),
        ("num_instances", 2**62, "'b%2E' has a coords member of another length than its instances"),
        ("num_features", 5, "has another number of features than the first bag"),
        ("dtype", "object", "'b%2E' has a dtype other than float16, bfloat16, float32"),
        ("dtype", "float32", "'b%2E' has a features member of another length than its instances"),
        ("features_offset", -1, "'b%2E' has a features member that reaches outside its shard"),
        ("features_offset", 10_100, "'b%2E' has a features member that reaches outside its shard"),
        ("features_bytes", 2**63 - 1, "'b%2E' has a features member that reaches outside its shard"),
        ("features_data_offset", 3713, "'b%2E' has features that do not start right after their header"),
        ("coords_crc32", None, "'b%2E' has a half-described coords member"),
        ("coords_bytes", 128, "'b%2E' has a coords member of another length than its instances"),
        ("json_bytes", -5, "'b%2E' has a json member that reaches outside its shard"),
    ],
)
def test_rows_that_contradict_are_neither_written_nor_read(
    column: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = small_manifest()
    rows = manifest.rows.to_pylist()
    rows[1][column] = value
    forged = Manifest(manifest.info, pa.Table.from_pylist(rows, ROWS_SCHEMA))
    with pytest.raises(ManifestError, match=message):
        forged.write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "_check_rows", lambda rows, info: None)
        forged.write(tmp_path)
    with pytest.raises(ManifestError, match=message):
        Manifest.read(tmp_path)


def test_counts_of_bags_must_agree(shards: Path) -> None:
    with pytest.raises(ManifestError, match=r"shard-000000\.tar is listed with 99 bags"):
        forge_manifest(shards, info=lambda info: info["shards"][0].update(num_bags=99))


def test_rows_must_be_in_the_order_of_the_shards(shards: Path) -> None:
    with pytest.raises(ManifestError, match="its rows are not in the order of the shards"):
        forge_manifest(shards, rows=lambda rows: rows.reverse())


def test_faults_of_files_are_listed(shards: Path) -> None:
    manifest = Manifest.read(shards)
    assert manifest.file_faults(shards) == {}
    first, second, third = (shards / shard.name for shard in manifest.info.shards[:3])
    expected = first.stat().st_size
    first.write_bytes(b"")
    second.rename(shards / "shard-000099.tar")
    third.write_bytes(third.read_bytes() + b"\0")
    assert manifest.file_faults(shards) == {
        "shard-000000.tar": f"expected {expected} bytes, got 0",
        "shard-000001.tar": "missing",
        "shard-000002.tar": f"expected {manifest.info.shards[2].bytes} bytes, got {third.stat().st_size}",
        "shard-000099.tar": "not in the manifest",
    }


def test_100_000_bags_open_in_less_than_a_second(tmp_path: Path) -> None:
    num_bags, bags_per_shard = 100_000, 500
    shard_of = np.arange(num_bags) // bags_per_shard
    sizes_N = np.random.default_rng(0).integers(1, 40_000, num_bags)
    names = [f"TCGA-{i:06d}-01Z-00-DX1.B34C267B-CAC5-4D3B-AE8E-9BD0B3A3B3A3" for i in range(num_bags)]
    shards = tuple(
        ShardFile(name=f"shard-{i:06d}.tar", bytes=2**40, sha256=64 * "0", num_bags=bags_per_shard)
        for i in range(num_bags // bags_per_shard)
    )
    constant = {"num_features": 1024, "dtype": "float16", "features_offset": 512, "features_data_offset": 640}
    constant |= {"features_crc32": 1, "json_offset": 512, "json_bytes": 100, "json_crc32": 1}
    columns = {
        "key": [escape_key(name) for name in names],
        "slide": names,
        "case": [name[:11] for name in names],
        "label": np.arange(num_bags) % 2,
        "shard": [shards[i].name for i in shard_of],
        "num_instances": sizes_N,
        "features_bytes": 128 + 2048 * sizes_N,
    }
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.array([constant.get(field.name)] * num_bags, field.type)
        for field in ROWS_SCHEMA
    ]
    info = DatasetInfo(name="large", classes=("x", "y"), synthetic=True, description="", shards=shards)
    Manifest(info, pa.Table.from_arrays(arrays, schema=ROWS_SCHEMA)).write(tmp_path)

    started = time.process_time()  # independent of a busy machine
    manifest = Manifest.read(tmp_path)
    assert time.process_time() - started < 1.0
    assert len(manifest.rows) == num_bags


def test_the_metadata_are_readable_without_us(shards: Path) -> None:
    metadata = pq.read_schema(shards / MANIFEST_NAME).metadata
    info = json.loads(metadata[b"mhimdist.manifest"])
    assert info["schema_version"] == 1
    assert [sorted(shard) for shard in info["shards"]] == [["bytes", "name", "num_bags", "sha256"]] * len(
        info["shards"]
    )


def test_shards_that_an_append_announced_are_no_fault(shards: Path) -> None:
    manifest = Manifest.open(shards)
    (shards / "shard-000007.tar").write_bytes(b"")
    (shards / "shard-000008.tar").write_bytes(b"")
    (shards / ".arriving").write_text("shard-000007.tar\n")
    assert manifest.file_faults(shards) == {"shard-000008.tar": "not in the manifest"}
    (shards / ".arriving").write_text("shard-000007.tar\nshard-000008.tar\n")
    assert manifest.file_faults(shards) == {}
    (shards / "shard-000000.tar").unlink()
    with pytest.raises(ManifestError, match=r"shards does not hold .*: shard-000000\.tar: missing$"):
        Manifest.open(shards)


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_folder_that_changes_while_it_is_looked_at_is_looked_at_again(looks: int, shards: Path) -> None:
    manifest, count = Manifest.read(shards), []

    def look() -> tuple[Manifest, dict[str, str]]:
        count.append(1)
        return manifest, {} if len(count) == looks else {"shard-000003.tar": "not in the manifest"}

    assert settled(look, shards) is manifest
    assert len(count) == looks


def test_a_long_list_of_faults_is_cut(shards: Path) -> None:
    faults = {f"shard-{number:06d}.tar": "missing" for number in range(1234)}
    with pytest.raises(ManifestError, match=r"shard-000019\.tar: missing; and 1,214 more$"):
        settled(lambda: (Manifest.read(shards), faults), shards)
