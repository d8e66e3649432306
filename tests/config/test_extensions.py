"""Packages that add a model, a reader or a tracker; those of docs/extensions.md do what the page says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import extension_package
import numpy as np
import pytest
from extension_package import blocks, describe, install_code, install_page

from data_prep import digits
from data_prep import shard as data_prep_shard
from data_prep.readers import sources
from data_prep.readers.folders import find_features
from mhimdist.config import extensions
from mhimdist.config.train import load_config
from mhimdist.data.shards import BagShards
from mhimdist.doctor import packages
from mhimdist.doctor.options import Doctor
from mhimdist.errors import ConfigError, DataError, ExtensionError
from mhimdist.search.options import Sweep
from mhimdist.search.tracker import TRACKERS, tracker_fault
from mhimdist.sweep.trackers import TrackerCallback, trackers

pytestmark = pytest.mark.long

TESTS = Path(__file__).parents[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the page's package, on the path."""
    folder = tmp_path / "site"
    install_page(folder)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.split(".")[0] == "my_mil"]:
        monkeypatch.delitem(sys.modules, name)
    sources.others.cache_clear()
    yield folder
    sources.others.cache_clear()


def run_with(
    folder: Path, *arguments: object, code: str | None = None, script: str = "extension_run.py"
) -> subprocess.CompletedProcess:
    """Run a script, or code, in a process where what is in a folder is installed."""
    path = os.pathsep.join([str(folder), str(TESTS.parent), str(TESTS)])
    what = ["-c", code] if code is not None else [str(TESTS / script)]
    return subprocess.run(
        [sys.executable, *what, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def told(done: subprocess.CompletedProcess) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_example_is_short():
    assert len(blocks("python")) == 4
    assert max(len(code.splitlines()) for code in blocks("python")) < 80


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """Where the page's package is, where it trained, and what came out."""
    site, folder = tmp_path_factory.mktemp("site") / "a", tmp_path_factory.mktemp("run")
    install_page(site)
    return site, folder, told(run_with(site, "train", folder))


def test_a_model_trains_under_mhim_and_appears_everywhere(whole):
    _, _, got = whole
    assert got["network"] == "SquaredMIL"
    assert len(got["losses"]) == 5
    assert got["losses"][-1] < got["losses"][0]
    assert got["width"] == 24
    assert got["digests"] == 2
    assert got["config"] == {"name": "squared", "hidden_dim": 16, "dropout": 0.25}
    assert got["versions"]["my-mil"] == "1.0"
    assert "got squared of the package my-mil 1.0, which an export cannot hold" in got["export"]


def test_a_model_that_was_killed_resumes_bit_for_bit(whole):
    site, folder, got = whole
    assert got["killed with"] == 9
    resumed = told(run_with(site, "resume", folder))
    assert 1 <= resumed["before"] < 5
    assert resumed["losses"] == got["losses"]


def test_a_model_whose_package_is_gone_is_named():
    with pytest.raises(ConfigError, match="no model 'squared'; valid: abmil"):
        load_config({"model": {"name": "squared"}})


GOOD_SETTINGS = """
    from typing import ClassVar, Literal
    from mhimdist.config.settings import ModelExtension

    class Model(ModelExtension):
        name: Literal["{name}"] = "{name}"
        def network(self, num_features, num_outputs):
            from mhimdist.models import BagModel
            {network}
"""
NO_WEIGHTS = """
            import torch
            from my_mil.network import SquaredMIL
            class Network(SquaredMIL):
                def __init__(self, *arguments):
                    super().__init__(*arguments)
                    self.scale = torch.nn.Parameter(torch.ones(3))
            from my_mil.settings import Squared
            return Network(Squared(), num_features, num_outputs)"""
WRONG_SHAPE = """
            from my_mil.network import SquaredMIL
            from my_mil.settings import Squared
            return SquaredMIL(Squared(), num_features, num_outputs + 1)"""


def test_broken_and_clashing_models_are_refused_by_name_and_harm_nothing(tmp_path: Path):
    site = tmp_path / "site"
    install_page(site)
    codes = {
        "rotten": ("rotten", "1 / 0"),
        "rival": ("abmil", GOOD_SETTINGS.format(name="abmil", network="...")),
        "twin": ("squared", GOOD_SETTINGS.format(name="squared", network="...")),
        "misnamed": ("misnamed", GOOD_SETTINGS.format(name="other", network="...")),
        "plain": ("plain", "Model = dict"),
    }
    for name, network in [("unset", NO_WEIGHTS), ("wrong", WRONG_SHAPE), ("nothing", "return None")]:
        codes[name] = (name, GOOD_SETTINGS.format(name=name, network=network))
    for package, (name, code) in codes.items():
        install_code(site, package, code, {extensions.MODELS: {name: f"{package}:Model"}})
    code = """
import json
from mhimdist.config.train import load_config
from mhimdist.errors import ConfigError
from mhimdist.models import build
from mhimdist.config.models import ALL_MODEL_NAMES
said = {"names": ALL_MODEL_NAMES}
for name in ("rotten", "squared", "misnamed", "plain", "unset", "wrong", "nothing", "abmil"):
    try:
        config = load_config({"model": {"name": name}})
        said[name] = type(build(config.model, num_features=8, num_classes=2, seed=1)).__module__
    except ConfigError as error:
        said[name] = str(error)
print(json.dumps(said))
"""
    said = told(run_with(site, code=code))
    assert said["names"][-3:] == ["nothing", "unset", "wrong"]
    expected = {
        "rotten": "'rotten:Model' of the package rotten 0.1 (mhimdist.models) is refused: ZeroDivisionError",
        "squared": "has an entry point of the same name; uninstall one of them",
        "misnamed": 'expected a field name: Literal["misnamed"] = "misnamed"',
        "plain": "expected a class derived from mhimdist.config.settings.ModelExtension",
        "unset": "unset of the package unset 0.1 is refused: initialize leaves scale without a value",
        "wrong": "logits_BC: expected (2, 2) for bags of (3, 1) instances, got (2, 3)",
        "nothing": "network returned NoneType, expected a BagModel",
        "abmil": "mhimdist.models.abmil",
    }
    assert {name: text in said[name] for name, text in expected.items()} == dict.fromkeys(expected, True), (
        said
    )


def test_a_reader_makes_shards_of_a_format_of_its_own(installed: Path, tmp_path: Path):
    (tmp_path / "features").mkdir()
    rows_ND = np.arange(20, dtype=np.float32).reshape(4, 5)
    for slide in ("a", "b"):
        np.savetxt(tmp_path / "features" / f"{slide}.feat", rows_ND, delimiter=";")
    (tmp_path / "labels.csv").write_text("slide,label,case\na,x,1\nb,y,2\n")
    labels, shards = tmp_path / "labels.csv", tmp_path / "shards"
    data_prep_shard.shard(tmp_path / "features", labels, shards, dtype="float32")
    bags = BagShards(shards)
    assert np.array_equal(bags.load([0]).features_TD.numpy(), rows_ND[:, 2:])
    (tmp_path / "features" / "b.feat").write_text("no numbers")
    with pytest.raises(DataError, match=r"b\.feat: the reader plain_text could not read it: could not"):
        sources.read_features(find_features(tmp_path / "features")["b"])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('gone')", "OSError: gone"),
        ("READER = 7", "expected a data_prep.readers.added.Reader, got 7"),
        ("READER = Reader(('.pt',), print)", r"mhimdist itself reads files that end in \.pt"),
        ("READER = Reader(('feat',), print)", r"expected suffixes such as \.feat"),
        ("READER = Reader(('.feat',), print)", "the extension plain_text reads files of the same suffix"),
    ],
)
def test_a_reader_that_cannot_be_used_is_named(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
):
    install_code(
        tmp_path / "more",
        "bad_reader",
        f"from data_prep.readers.added import Reader\n{code}\n",
        {extensions.READERS: {"zz_bad": "bad_reader:READER"}},
    )
    monkeypatch.syspath_prepend(tmp_path / "more")
    monkeypatch.delitem(sys.modules, "bad_reader", raising=False)
    sources.others.cache_clear()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"got nothing; the extension zz_bad.* bad_reader 0\.1.*{reason}"):
        find_features(tmp_path / "empty")
    assert list(sources.others().readers) == ["plain_text"]


def test_a_tracker_sees_what_a_sweep_says(installed: Path, tmp_path: Path):
    sweep = Sweep(home=tmp_path, name="mine", track="lines")
    sweep.folder.mkdir(parents=True)
    _, callback = trackers(sweep)
    assert isinstance(callback, TrackerCallback)
    trial: Any = type("Trial", (), {"config": {"number": 3, "loss.alpha": 0.5}})
    callback.setup()
    report = {"number": 3, "epoch": 2, "validation_score": 0.75, "train_s": 1, "kept_share": None}
    callback.on_trial_result(1, [], trial, report)
    callback.on_trial_result(1, [], trial, {"number": 3, "is_saved": True})
    callback.on_trial_complete(1, [], trial)
    callback.on_experiment_end([])
    assert (sweep.folder / "lines.txt").read_text().splitlines() == [
        "trial 3 epoch 2 0.7500",
        "trial 3 ended {'loss.alpha': 0.5}",
    ]
    with pytest.raises(ExtensionError, match=r"the tracker lines failed in reported \(ValueError: .*closed"):
        callback.on_trial_result(1, [], trial, report)


@pytest.mark.ray
@pytest.mark.slow
def test_a_tracker_follows_a_sweep(tmp_path: Path):
    site, data, home = tmp_path / "site", tmp_path / "data", tmp_path / "home"
    install_page(site)
    digits.build("digits-c16", data, scale=0.01)
    options = ["--name", "mine", "--track", "lines", "--num-trials", "2", "--scheduler", "none"]
    done = run_with(site, data, home, *options, script="sweep_once.py")
    assert done.returncode == 0, done.stderr
    lines = (home / "runs" / "mine" / "lines.txt").read_text().splitlines()
    assert sum(line.startswith("trial 0 epoch ") for line in lines) == 8  # 4 epochs of 2 folds
    assert sum(line.startswith("trial 1 epoch ") for line in lines) == 8
    assert sorted(line[:13] for line in lines if "ended" in line) == ["trial 0 ended", "trial 1 ended"]
    assert all("loss.alpha" in line for line in lines if "ended" in line)


def test_a_tracker_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install_code(tmp_path / "a", "bad_tracker", "Bad = 7", {extensions.TRACKERS: {"bad": "bad_tracker:Bad"}})
    describe(tmp_path / "a", "greedy", "1.0", {extensions.TRACKERS: {"wandb": "greedy:Tracker"}})
    monkeypatch.syspath_prepend(tmp_path / "a")
    with pytest.raises(ExtensionError, match=r"bad = 'bad_tracker:Bad' of the package bad_tracker 0\.1"):
        trackers(Sweep(track="bad"))
    with pytest.raises(ExtensionError, match="mhimdist itself has this name"):
        extensions.one(extensions.TRACKERS, "wandb", fault=tracker_fault, taken=TRACKERS)
    with pytest.raises(ConfigError, match="no tracker 'nobody'; valid: none, wandb, mlflow, bad, wandb"):
        Sweep.from_command_line(["--track", "nobody"])


def test_the_doctor_names_them(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install_code(tmp_path / "a", "rotten", "1 / 0", {extensions.MODELS: {"rotten": "rotten:Model"}})
    path = os.pathsep.join([str(tmp_path / "a"), str(installed), str(TESTS.parent)])
    monkeypatch.setenv("PYTHONPATH", path)
    bad, good = packages.added(Doctor(timeout_s=300))
    assert (bad.status, good.status) == ("warning", "fine")
    assert "the package rotten 0.1 (mhimdist.models) is refused: ZeroDivisionError" in bad.found
    assert good.found == "models squared; readers plain_text; trackers lines"
    assert extension_package.PAGE.is_file()
