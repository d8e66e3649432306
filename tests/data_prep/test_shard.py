import gc
import io
import json
import os
import resource
import runpy
import signal
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import webdataset
from feature_folders import CLASSES, NUM_FEATURES, SLIDES, coords_of, shard_folder, write_features
from forked import fork, status_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from data_prep.readers.stated import Stated
from data_prep.shard import main, shard
from data_prep.shard_options import ShardOptions
from data_prep.writing import plan as plan_module
from data_prep.writing.plan import PlannedBag
from mhimdist.data.format import FEATURE_DTYPES, escape_key
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, DataError, LabelError
from mhimdist.process import run

ROOT = Path(__file__).parents[2]


def write(folder: Path, table: str = "slide,label\na,x\nb,y\n", **slides: np.ndarray) -> Path:
    """A folder of features and labels; by default two slides of 3 x 4."""
    (folder / "features").mkdir(parents=True)
    for slide, features in (slides or {"a": np.ones((3, 4)), "b": np.zeros((3, 4))}).items():
        np.save(folder / "features" / f"{slide}.npy", features)
    (folder / "labels.csv").write_text(table)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arguments(folder: Path, *more: str) -> list[str]:
    paths = {"--features": "features", "--labels": "labels.csv", "--out": "shards"}
    return [part for option, name in paths.items() for part in (option, str(folder / name))] + list(more)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for copy in ("one", "two"):
        write_features(tmp_path / copy)
    one, two = (shard_folder(tmp_path / copy, description="x") for copy in ("one", "two"))
    assert sorted(files_of(one)) == [
        "manifest.parquet",
        *(f"shard-{i:06d}.{ending}" for i in range(3) for ending in ("idx", "tar")),
    ]
    assert files_of(one) == files_of(two)


def test_the_seed_spreads_the_bags(tmp_path: Path) -> None:
    write_features(tmp_path)
    orders = set()
    for seed in range(3):
        out = tmp_path / str(seed)
        shard(tmp_path / "features", tmp_path / "labels.csv", out, seed=seed)
        bags = BagShards(out)
        assert sorted(bags.slides) == sorted(SLIDES)
        orders.add(bags.slides)
    assert len(orders) == 3


def test_shards_are_of_about_the_size_asked_for(tmp_path: Path) -> None:
    features = {f"s{i}": np.zeros((100, 8)) for i in range(20)}  # 3584 bytes in a tar
    table = "slide,label\n" + "".join(f"{slide},x\n" for slide in features)
    write(tmp_path, table, **features)
    infos = {}
    for shard_bytes in (1, 10_000, 2**30):
        out = tmp_path / str(shard_bytes)
        shard(tmp_path / "features", tmp_path / "labels.csv", out, shard_bytes=shard_bytes)
        infos[shard_bytes] = Manifest.read(out).info.shards
    assert [item.num_bags for item in infos[1]] == [1] * 20
    assert [item.num_bags for item in infos[10_000]] == [2] * 10
    assert [item.num_bags for item in infos[2**30]] == [20]


def test_what_is_recorded(tmp_path: Path) -> None:
    write(tmp_path, "slide,label\na,1\nb,10\n")
    (tmp_path / "features/a.npy").unlink()
    torch.save({"feats": torch.ones(3, 4), "encoder": "uni", "patch_size": 256}, tmp_path / "features/a.pt")
    shard(tmp_path / "features", tmp_path / "labels.csv", tmp_path / "out", description="d", synthetic=True)
    info = Manifest.read(tmp_path / "out").info
    assert (info.name, info.classes, info.description, info.synthetic) == ("out", ("1", "10"), "d", True)
    (path,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(path) as tar:
        said = {key: json.load(tar.extractfile(f"{key}.json")) for key in ("a", "b")}
    common = {"dtype": "float16", "level": None}
    a = {"slide": "a", "case": "a", "label": "1", "source": "a.pt", "encoder": "uni", "patch_size": 256}
    b = {"slide": "b", "case": "b", "label": "10", "source": "b.npy", "encoder": None, "patch_size": None}
    assert said == {"a": a | common, "b": b | common}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    array=st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]).flatmap(
        lambda dtype: st_numpy.arrays(
            np.dtype(dtype),
            st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=9),
            elements=st.floats(-60_000, 60_000, width=16),
        )
    ),
    column_major=st.booleans(),
    as_pt=st.booleans(),
    stored=st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_any_float_in_any_layout_comes_back(
    array: np.ndarray, column_major: bool, as_pt: bool, stored: str, tmp_path_factory
) -> None:
    folder = write(tmp_path_factory.mktemp("round_trip"), "slide,label\na,x\n", a=array)
    native = array.astype(array.dtype.newbyteorder("="))
    if as_pt:
        (folder / "features/a.npy").unlink()
        tensor = torch.from_numpy(native)
        torch.save(tensor.T.contiguous().T if column_major else tensor, folder / "features/a.pt")
    elif column_major:
        np.save(folder / "features/a.npy", np.asfortranarray(array))
    shard(folder / "features", folder / "labels.csv", folder / "out", dtype=stored)
    batch = BagShards(folder / "out").load([0], torch.float64)
    expected_ND = torch.from_numpy(native).to(getattr(torch, stored))
    assert torch.equal(batch.features_TD, expected_ND.double())


# webdataset leaves the tar open.
@pytest.mark.filterwarnings(r"ignore:Exception ignored in.*\.tar:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_webdataset_reads_the_shards(num_workers: int, tmp_path: Path) -> None:
    features = write_features(tmp_path)
    out = shard_folder(tmp_path)
    # Decoders by name: webdataset's default ones would execute what a hostile member holds.
    decode = webdataset.autodecode.Decoder(
        [
            webdataset.handle_extension("npy", lambda data: np.load(io.BytesIO(data), allow_pickle=False)),
            webdataset.handle_extension("json", json.loads),
        ],
        pre=[],
        post=[],
    )
    dataset = webdataset.WebDataset(
        sorted(map(str, out.glob("*.tar"))), shardshuffle=False, empty_check=False
    ).map(decode)
    samples = list(webdataset.WebLoader(dataset, batch_size=None, num_workers=num_workers))
    del dataset
    gc.collect()
    assert [sample["__key__"] for sample in samples] == list(BagShards(out).keys)
    for sample in samples:
        slide = unquote(sample["__key__"])
        number, size = SLIDES.index(slide), len(features[slide])
        assert sample["json"]["slide"] == slide
        assert sample["json"]["label"] == CLASSES[number % 2]
        assert sample["features.npy"].dtype == torch.float16
        assert np.array_equal(sample["features.npy"], features[slide])
        if number % 2:
            assert np.array_equal(sample["coords.npy"], coords_of(size))
            assert np.array_equal(sample["instance_labels.npy"], np.arange(size) % 2)
        else:
            assert "coords.npy" not in sample


def test_dali_reads_the_shards_by_their_index(tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")  # it exists for Linux only
    features = write_features(tmp_path)
    out = shard_folder(tmp_path)
    tars = sorted(out.glob("*.tar"))

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        member = dali.fn.readers.webdataset(
            paths=list(map(str, tars)),
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=["features.npy"],
            missing_component_behavior="error",
        )
        return dali.fn.decoders.numpy(member)

    built = pipeline()
    built.build()
    for key in BagShards(out).keys:
        (bag,) = built.run()[0]
        assert np.array_equal(np.array(bag), features[unquote(key)])
        assert bag.source_info().endswith(f":{key}.features.npy")


def test_the_index_is_what_nvidia_would_write(tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    write_features(tmp_path)
    for path in shard_folder(tmp_path).glob("*.tar"):
        with wds2idx.IndexCreator(str(path), str(tmp_path / "nvidia.idx"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_bytes() == (tmp_path / "nvidia.idx").read_bytes()


@pytest.mark.faults(11, 12)
@pytest.mark.parametrize(
    ("slides", "options", "message"),
    [
        ({"a": np.ones((3, 4)), "b": np.ones((3, 5))}, {}, "its features are . wide, most others ."),
        ({"a": np.full((3, 4), np.nan)}, {}, "12 of its features are NaN or infinite"),
        ({"a": np.array([[1, np.inf, -np.inf]])}, {}, "2 of its features are NaN or infinite"),
        ({"a": np.array([[1, 7e4]])}, {}, "a value of 70000 does not fit float16, which ends at 65504"),
        ({"a": np.array([[1, 1e39]])}, {"dtype": "float32"}, r"1e\+39 does not fit float32"),
        ({"a": np.ones((0, 4))}, {}, "the bag is empty"),
    ],
)
def test_features_that_cannot_be_used_leave_nothing(
    slides: dict[str, np.ndarray], options: dict, message: str, tmp_path: Path
) -> None:
    table = "slide,label\n" + "".join(f"{slide},x\n" for slide in slides)
    folder = write(tmp_path, table, **slides)
    with pytest.raises(DataError, match=message):
        shard(folder / "features", folder / "labels.csv", folder / "out", **options)
    assert sorted(path.name for path in folder.iterdir()) == ["features", "labels.csv"]


def test_slides_and_features_must_match(tmp_path: Path) -> None:
    folder = write(tmp_path, "slide,label\na,x\n" + "".join(f"s{i},x\n" for i in range(7)))
    call = partial(shard, folder / "features", folder / "labels.csv", folder / "out")
    with pytest.raises(
        DataError, match=r"no features in .* for 7 of 8 slides in .*labels\.csv \(.*'s4' and 2 more$"
    ):
        call()
    (folder / "labels.csv").write_text("slide,label\na,x\n")
    with pytest.raises(LabelError, match=r"no label in .* for 1 of 2 slides in .*features \(.*: 'b'$"):
        call()
    (folder / "labels.csv").write_text("slide,label\nA,x\nB,y\n")
    message = r"for 2 of 2 .*; features without a label: 'a', 'b'\): 'A', 'B'; they differ .* upper and lower"
    with pytest.raises(DataError, match=message):
        call()
    message = (
        r"no slide has both .* \(labels: 'A', 'B'; features: 'a', 'b'\); name .*; they differ .* lower case"
    )
    with pytest.raises(DataError, match=message):
        call(skip_unmatched=True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "int8"}, "dtype: expected 'float16', 'bfloat16' or 'float32', got 'int8'"),
        ({"shard_bytes": 0}, "shard_bytes: expected a whole number of at least 1, got 0"),
        ({"workers": 0}, "workers: expected a whole number of at least 1, got 0"),
        ({"stated": {"level": -1}}, r"stated\.level: expected a whole number of at least 0, got -1"),
        ({"class_map": "a=b,a=c"}, "class_map: expected OLD=NEW,OLD=NEW,..., got 'a=b,a=c'"),
        ({"seeds": 1}, "unknown option seeds; expected one of features, labels, out, .* seed, "),
    ],
)
def test_options_out_of_range_are_refused(option: dict, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    with pytest.raises(ConfigError, match=message):
        shard(folder / "features", folder / "labels.csv", folder / "out", **option)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda out: out.symlink_to("nowhere")])
def test_what_exists_is_not_touched(make, tmp_path: Path) -> None:
    folder = write(tmp_path)
    make(folder / "out")
    with pytest.raises(DataError, match=r"out already exists"):
        shard(folder / "features", folder / "labels.csv", folder / "out")


def test_an_impossible_name_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    monkeypatch.setattr("data_prep.shard_labels.read_labels", lambda path: pytest.fail("started to work"))
    with pytest.raises(OSError, match="File name too long"):
        shard(folder / "features", folder / "labels.csv", folder / (300 * "x"))


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_features(tmp_path) and tmp_path
    read, calls = plan_module._read, []

    def interrupted(bag: PlannedBag, stop: object):
        calls.append(bag)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(bag, stop)

    monkeypatch.setattr(plan_module, "_read", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        run(partial(main, arguments(folder)))
    assert exit_info.value.code == 130
    assert sorted(path.name for path in folder.iterdir()) == ["features", "labels.csv"]


def test_sigterm_leaves_nothing(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write(tmp_path)

    def stuck() -> None:
        plan_module._read = lambda bag, stop: time.sleep(100)
        sys.argv = ["shard", *arguments(folder)]
        runpy.run_module("data_prep.shard", run_name="__main__")

    said = tmp_path_factory.mktemp("said") / "said"
    child = fork(stuck, said)
    deadline = time.monotonic() + 300
    while not list(folder.glob(".shards.sharding/shards/.*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert status_of(child) == os.EX_TEMPFAIL
    *_, line = said.read_text().splitlines()
    assert line == f"{folder / 'shards'} is not finished; the same command finishes it"
    assert sorted(path.name for path in folder.iterdir()) == ["features", "labels.csv"]


def test_the_command_without_room_to_write(tmp_path: Path) -> None:
    folder = write(tmp_path, a=np.ones((1000, 100)), b=np.ones((1000, 100)))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        run(partial(main, arguments(folder)))

    assert status_of(fork(limited, tmp_path / "said")) == 1
    said = (tmp_path / "said").read_text().splitlines()
    assert said[1:] == [f"error: File too large: {folder / 'shards'}"]
    assert sorted(path.name for path in folder.iterdir()) == ["features", "labels.csv", "said"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write(tmp_path / "a folder, ä")
    run(
        partial(
            main, arguments(folder, "--classes", "y,x,z", "--dtype", "float32", "--name", "n", "--seed", "3")
        )
    )
    captured = capsys.readouterr()
    assert captured.out == f"{folder / 'shards'}: 2 bags of 2 cases, 10.2 kB (shards: 1; classes: y, x, z)\n"
    assert captured.err.startswith(
        "warning: the labels have no cases, so each of the 2 slides counts as its own "
    )
    bags = BagShards(folder / "shards")
    assert (bags.name, bags.classes) == ("n", ("y", "x", "z"))
    assert dict(zip(bags.keys, bags.labels_N.tolist(), strict=True)) == {"a": 1, "b": 0}
    assert bags.load([0], torch.float32).features_TD.data_ptr() == bags.load([0]).features_TD.data_ptr()


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--labels", "nowhere.csv"], 1, "error: no label table at nowhere.csv\n"),
        (["--features", "nowhere"], 1, "nowhere\n"),
        (["--dtype", "int8"], 2, "argument --dtype: invalid choice: 'int8'"),
        (["--shard-bytes", "0"], 2, "argument --shard-bytes: expected a whole number of at least 1, got '0'"),
        (["--shard-bytes", "1.5"], 2, "argument --shard-bytes: expected a whole number"),
        (["--level", "-1"], 2, "argument --level: expected a whole number of at least 0, got '-1'"),
        (["--seed", "x"], 2, "argument --seed: expected a whole number, got 'x'"),
        (["--class-map", "a=b,a=c"], 2, "argument --class-map: expected OLD=NEW,OLD=NEW,..., got 'a=b,a=c'"),
        (["--surprise"], 2, "unrecognized arguments: --surprise"),
    ],
)
def test_the_command_refuses_in_a_line(
    more: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = write(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        run(partial(main, arguments(folder, *more)))
    assert exit_info.value.code == status
    assert message in capsys.readouterr().err
    assert not (folder / "shards").exists()


def test_the_command_line_says_all_that_a_call_can() -> None:
    line = [
        *("--features", "f", "--labels", "l", "--out", "o", "--append", "--name", "None", "--seed", "-3"),
        *("--classes", "first", "--classes", 'a [b],"c",,d', "--class-map", 'a=b,[c]=d=e,"x"=y'),
        *("--slide-column", "1", "--label-column", "l", "--case-column", "c", "--slides", "s"),
        *("--case-from", "tcga", "--skip-unmatched", "--skip-bad", "--feature-key", "k", "--encoder", "uni"),
        *("--patch-size", "256", "--level", "0", "--dtype", "bfloat16", "--shard-bytes", "5"),
        *("--workers", "2", "--description", 'a, "b" [c] 100%', "--synth"),
    ]
    assert ShardOptions.from_command_line(line) == ShardOptions(
        features=Path("f"),
        labels=Path("l"),
        out=Path("o"),
        append=True,
        name="None",
        classes=("a [b]", '"c"', "", "d"),
        class_map={"a": "b", "[c]": "d=e", '"x"': "y"},
        slide_column="1",
        label_column="l",
        case_column="c",
        slides=Path("s"),
        case_from="tcga",
        skip_unmatched=True,
        skip_bad=True,
        stated=Stated(feature_key="k", encoder="uni", patch_size=256, level=0),
        dtype="bfloat16",
        shard_bytes=5,
        seed=-3,
        workers=2,
        description='a, "b" [c] 100%',
        synthetic=True,
    )
    least = ["--features", "f", "--out", "o"]
    assert ShardOptions.from_command_line(least) == ShardOptions(features=Path("f"), out=Path("o"))


def test_every_type_that_shards_can_hold_can_be_asked_for() -> None:
    for dtype in FEATURE_DTYPES:
        assert ShardOptions.of(features="f", out="o", dtype=dtype).dtype == dtype


def test_every_option_is_described() -> None:
    for settings_class in (ShardOptions, Stated):
        for name, field in settings_class.model_fields.items():
            assert field.description or name == "stated"


def test_help_explains_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help-all"])
    text = capsys.readouterr().out
    assert "(default: 1073741824)" in " ".join(text.split())
    for option in (
        "features",
        "labels",
        "out",
        "name",
        "classes",
        "dtype",
        "shard-bytes",
        "seed",
        "synthetic",
    ):
        assert f"--{option}" in text


def test_names_of_slides_survive(tmp_path: Path) -> None:
    write_features(tmp_path)
    bags = BagShards(shard_folder(tmp_path))
    assert sorted(bags.slides) == sorted(SLIDES)
    assert all(key.isascii() and escape_key(unquote(key)) == key for key in bags.keys)
    assert bags.num_features == NUM_FEATURES
