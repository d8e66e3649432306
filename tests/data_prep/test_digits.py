"""The embedded data sets: their statistics, their cases, their bytes, and building them at most once."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from forked import fork, status_of

from data_prep import digits
from data_prep.digits import DATA_SETS, build, ensure, main, write_features
from data_prep.embedded.classes import HARD_DIGIT, SALIENT_DIGIT
from data_prep.embedded.slides import Slide, c16_facts, digit_images
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import DataError

pytestmark = pytest.mark.numeric


def drawn(name: str, seed: int = 0, bags: int | None = None, scale: float | None = None) -> list[Slide]:
    data_set = DATA_SETS[name]
    rng = np.random.Generator(np.random.PCG64(seed))
    return list(islice(data_set.draw(rng, data_set.scale if scale is None else scale), bags))


@pytest.fixture(scope="module")
def c16() -> list[Slide]:
    return drawn("digits-c16")


@pytest.fixture(scope="module")
def tcga() -> list[Slide]:
    return drawn("digits-tcga")


def images_of_cases(slides: list[Slide]) -> dict[str, set[bytes]]:
    images: dict[str, set[bytes]] = {}
    for slide in slides:
        images.setdefault(slide.case, set()).update(row.tobytes() for row in slide.features_ND)
    return images


def test_images_are_averaged_exactly():
    features_ID, digits_I = digit_images()
    assert features_ID.shape == (1797, 16)
    assert features_ID.dtype == np.float16
    assert len(digits_I) == 1797
    # Means of four whole numbers from 0 to 16, over 8, minus 1: float16 holds them without rounding.
    assert np.array_equal(features_ID * 32, np.rint(features_ID.astype(np.float64) * 32))
    assert features_ID.min() == -1
    assert features_ID.max() <= 1


def test_c16_has_the_slides_of_camelyon16(c16: list[Slide]):
    assert [sum(slide.label == name for slide in c16) for name in ("normal", "tumor")] == [239, 159]
    assert len({slide.name for slide in c16}) == 398
    assert len({slide.case for slide in c16}) == 20


def test_c16_bags_have_the_distributions_of_camelyon16(c16: list[Slide]):
    facts = c16_facts()
    missing = Counter(max(5, round(size / 20)) for size in facts["bag_sizes"])
    missing.subtract(len(slide.features_ND) for slide in c16)
    assert max(missing.values()) == 0  # every observed size is used, and few are used twice
    assert -missing.total() == 398 - len(facts["bag_sizes"])
    fractions = [(slide.instance_labels_N > 0).mean() for slide in c16 if slide.label == "tumor"]
    # Small fractions are raised to 5 instances; the large ones must be CAMELYON16's.
    for quantile in (0.9, 0.95, 1):
        expected = np.quantile(facts["tumour_fractions"], quantile)
        assert np.quantile(fractions, quantile) == pytest.approx(expected, rel=0.1)


def test_c16_labels_follow_the_instances(c16: list[Slide]):
    features_ID, digits_I = digit_images()
    digits_of_image: dict[bytes, set[int]] = {}
    for row, digit in zip(features_ID, digits_I, strict=True):
        digits_of_image.setdefault(row.tobytes(), set()).add(int(digit))
    for slide in c16:
        num_positives = int((slide.instance_labels_N > 0).sum())
        assert num_positives >= 5 if slide.label == "tumor" else num_positives == 0
        for row, label in zip(slide.features_ND, slide.instance_labels_N, strict=True):
            digits = digits_of_image[row.tobytes()]
            expected = {1: {HARD_DIGIT}, 2: {SALIENT_DIGIT}}.get(int(label), set(range(8)))
            assert digits & expected


def test_c16_positives_are_salient_and_hard_in_equal_parts(c16: list[Slide]):
    labels = np.concatenate([slide.instance_labels_N for slide in c16])
    assert (labels == 1).sum() / (labels > 0).sum() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["digits-c16", "digits-tcga"])
def test_no_image_is_shared_by_two_cases(name: str, request: pytest.FixtureRequest):
    slides = request.getfixturevalue(name.removeprefix("digits-"))
    images, counts = np.unique(digit_images()[0], axis=0, return_counts=True)
    same_pixels = {row.tobytes() for row in images[counts > 1]}  # two images that averaging made equal
    owner: dict[bytes, str] = {}
    for case, case_images in images_of_cases(slides).items():
        for image in case_images - same_pixels:
            assert owner.setdefault(image, case) == case
    assert len(owner) > 1500


def test_c16_every_case_has_both_classes(c16: list[Slide]):
    for case in {slide.case for slide in c16}:
        labels = [slide.label for slide in c16 if slide.case == case]
        assert len(labels) in (19, 20, 21)
        assert labels.count("tumor") in (7, 8)


def test_tcga_cases_have_one_subtype_and_several_slides(tcga: list[Slide]):
    cases: dict[str, list[str]] = {}
    for slide in tcga:
        cases.setdefault(slide.case, []).append(slide.label)
        assert 0.25 <= slide.instance_labels_N.mean() <= 0.85
    assert len(cases) == 80
    assert all(len(set(labels)) == 1 for labels in cases.values())
    assert {len(labels) for labels in cases.values()} == {1, 2, 3}
    assert [
        sum(labels[0] == name for labels in cases.values()) for name in DATA_SETS["digits-tcga"].classes
    ] == [
        40,
        40,
    ]


def test_shaped_bags_have_the_size_of_camelyon16():
    slides = drawn("c16-shaped", bags=3)
    for slide in slides:
        assert len(slide.features_ND) in c16_facts()["bag_sizes"]
        assert slide.features_ND.shape[1] == 1024
        assert slide.features_ND.dtype == np.float16
        shifted = slide.features_ND[slide.instance_labels_N == 1, :32].astype(np.float32)
        assert (len(shifted) >= 5) == (slide.label == "tumor")
        assert not len(shifted) or shifted.mean() == pytest.approx(1, abs=0.35)
    assert DATA_SETS["c16-shaped"].synthetic
    assert "SYNTHETIC" in DATA_SETS["c16-shaped"].description


@pytest.mark.parametrize("name", DATA_SETS)
def test_bytes_depend_on_the_seed_alone(name: str, tmp_path: Path):
    for folder, seed in (("first", 1), ("again", 1), ("other", 2)):
        build(name, tmp_path / folder, seed=seed, scale=1 / 50, bags=12)
    first, again, other = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("first", "again", "other")
    )
    assert first == again
    assert first["shard-000000.tar"] != other["shard-000000.tar"]


def test_features_folder_agrees_with_the_shards(tmp_path: Path):
    write_features("digits-c16", tmp_path / "source", bags=10)
    with (tmp_path / "source/labels.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    bags = BagShards(build("digits-c16", tmp_path / "shards", bags=10))
    assert sorted(bags.slides) == sorted(rows)
    for i, slide in enumerate(bags.slides):
        features_ND = np.load(tmp_path / f"source/features/{slide}.npy")
        labels_N = np.load(tmp_path / f"source/features/{slide}.instance_labels.npy")
        assert np.array_equal(bags.load([i]).features_TD.numpy(), features_ND)
        assert np.array_equal(bags.instance_labels(i), labels_N)
        assert bags.classes[bags.labels_N[i]] == rows[slide]["label"]
        assert bags.cases[i] == rows[slide]["case"]


def test_manifest_says_what_is_synthetic(tmp_path: Path):
    info = Manifest.read(build("c16-shaped", tmp_path / "shaped", scale=0.001, bags=4)).info
    assert info.synthetic
    assert info.classes == ("normal", "tumor")
    assert not Manifest.read(build("digits-tcga", tmp_path / "digits", bags=4)).info.synthetic


def test_ensure_builds_once_whoever_asks(tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: ensure("digits-tcga", tmp_path), range(4)))
    assert folders == {tmp_path / "data/digits-tcga"}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock", "digits-tcga"]
    written = (tmp_path / "data/digits-tcga/manifest.parquet").stat().st_mtime_ns
    ensure("digits-tcga", tmp_path)
    assert (tmp_path / "data/digits-tcga/manifest.parquet").stat().st_mtime_ns == written


def test_ensure_takes_a_folder_as_it_is(tmp_path: Path):
    assert ensure(str(tmp_path), tmp_path / "home") == tmp_path
    assert not (tmp_path / "home").exists()
    with pytest.raises(DataError, match=r"nowhere.*digits-c16, digits-tcga, c16-shaped"):
        ensure(str(tmp_path / "nowhere"), tmp_path)


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise DataError("no space")

    monkeypatch.setattr("data_prep.digits.shard", fail)
    with pytest.raises(DataError, match="no space"):
        build("digits-c16", tmp_path / "out", bags=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "digits"},
            "no embedded data set is named 'digits'; expected one of digits-c16, digits-tcga, c16-shaped",
        ),
        ({"name": "digits-c16", "scale": 0.0}, "scale of digits-c16 must be above 0, got 0.0"),
        ({"name": "digits-c16", "bags": 0}, "bags of digits-c16 must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        build(out=tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_touched(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DataError, match="already exists"):
        build("digits-c16", tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.slow  # the jobs' tests make the same set at the same place
def test_command_line(tmp_path: Path):
    command = [sys.executable, "-m", "data_prep.digits", "digits-c16"]
    environment = {"MHIMDIST_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"digits-c16: {tmp_path}/data/digits-c16\n"
    assert len(BagShards(tmp_path / "data/digits-c16")) == 398


def test_a_set_of_ones_own_needs_a_place(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("MHIMDIST_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["digits", "digits-c16", "--seed", "1"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    assert "need --out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--features-only"]])
def test_sigterm_leaves_nothing(more: list[str], tmp_path: Path):
    def stuck() -> None:
        sys.argv = ["digits", "digits-c16", "--out", str(tmp_path / "mine/out"), *more]
        with mock.patch("numpy.save", side_effect=lambda *_: time.sleep(100)):
            runpy.run_module("data_prep.digits", run_name="__main__")

    child = fork(stuck, tmp_path / "said")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("mine/**/features")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert status_of(child) == os.EX_TEMPFAIL
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert line == f"{tmp_path}/mine/out is not finished; the same command finishes it"
    assert not list((tmp_path / "mine").iterdir())


def test_facts_are_camelyon16s():
    facts = c16_facts()
    assert facts["num_slides"] == {"normal": 239, "tumor": 159}
    assert [min(facts["bag_sizes"]), max(facts["bag_sizes"])] == [140, 44402]
    assert json.dumps(facts)  # plain data


@pytest.mark.faults(50)
def test_what_a_killed_build_leaves_is_removed_by_the_next(tmp_path, monkeypatch):
    def killed(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    def attempt():
        monkeypatch.setattr(digits, "shard", killed)
        digits.build("digits-c16", tmp_path / "shards", scale=0.01, bags=12)

    assert status_of(fork(attempt)) == -signal.SIGKILL
    assert any(tmp_path.rglob("*.npy"))
    digits.build("digits-c16", tmp_path / "shards", scale=0.01, bags=24)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
