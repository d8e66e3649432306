"""The wheel, made from the sdist and installed into an empty environment, does what a user asks of it.

Nothing is downloaded: the environment sees the packages of this one, and mhimdist only from the wheel.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from own_slides_page import AFTER, SHARDS
from tool_folders import NUM_SLIDES, write_clam

import mhimdist

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("mhimdist", "data_prep")

MAX_JOURNEY_S = 600
"""What docs/own_slides.md promises; the installation comes on top, 2 minutes from a local disk."""

pytestmark = pytest.mark.slow


def tracked() -> list[str]:
    """The files of the checkout, or of the sdist that these tests lie in."""
    if (ROOT / ".git").exists():
        told = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
        )
        return [name for name in told.stdout.splitlines() if (ROOT / name).is_file()]
    return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of wheel and sdist; the wheel is made from the sdist, in a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", str(copy)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return copy / "dist"


@pytest.fixture(scope="module")
def python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and with this environment's other packages."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth names adds no .pth of its own, so an editable mhimdist stays out.
    (site / "others.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    (wheel,) = dist.glob("*.whl")
    found = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(found), "install"]
    options = ["--no-deps", "--no-index", "--ignore-installed", "--quiet", "--root-user-action=ignore"]
    subprocess.run([*command, *options, str(wheel)], check=True)
    return found


def run(python: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a command of the environment in a folder outside of the checkout."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    env |= {"MHIMDIST_HOME": str(folder), "PATH": f"{python.parent}:{env['PATH']}", **variables}
    return subprocess.run([*arguments], cwd=folder, env=env, capture_output=True, text=True)


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(dist: Path):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {name for name in tracked() if name.split("/")[0] in PACKAGES}
    assert inside == ours | {"mhimdist/doctor/constraints.txt"}
    assert wheel.name == f"mhimdist-{mhimdist.__version__}-py3-none-any.whl"


def test_the_sdist_holds_what_a_contributor_needs(dist: Path):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in tracked() if name[0] != "."}
    assert wanted - inside == set()


def test_an_empty_environment_imports_it_from_the_wheel(python: Path, tmp_path: Path):
    code = (
        "import json, mhimdist, data_prep, sys; from importlib import metadata, resources;"
        "print(json.dumps([mhimdist.__file__, data_prep.__file__, metadata.version('mhimdist'),"
        "resources.files('mhimdist').joinpath('py.typed').is_file(), sorted(mhimdist.__all__),"
        "[type(getattr(mhimdist, name)).__name__ for name in mhimdist.__all__] and 'torch' in sys.modules]))"
    )
    done = run(python, tmp_path, str(python), "-c", code)
    assert done.returncode == 0, done.stderr
    ours, theirs, version, is_typed, names, has_torch = json.loads(done.stdout)
    environment = str(python.parent.parent)
    assert ours.startswith(environment)
    assert theirs.startswith(environment)
    assert (version, is_typed, has_torch) == (mhimdist.__version__, True, True)
    assert names == sorted(mhimdist.__all__)


def test_data_training_and_a_report_work_from_the_wheel(python: Path, tmp_path: Path):
    made = run(python, tmp_path, str(python), "-m", "data_prep.digits", "digits-c16")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "data" / "digits-c16" / "manifest.parquet").is_file()
    code = (
        "import mhimdist as mh; from pathlib import Path; from mhimdist.training.fold import run_fold;"
        "from mhimdist.training.folds import Fold;"
        "bags = mh.open_bags('data/digits-c16');"
        "of = (bags.keys, bags.cases, bags.labels_N);"
        "split, *_ = mh.k_folds(*of, num_folds=3, validation_share=0.15, seed=0);"
        "small = {'model.hidden_dim': 16, 'model.attention_dim': 8, 'epochs': 1, 'device': 'cpu',"
        "'teacher.kind': 'momentum', 'student_init': 'none'};"
        "config = mh.preset('c16', 'abmil').override(small);"
        "fold = Fold('fold 1', config, split, 1, Path('runs/fold'), is_tested=True);"
        "run_fold(fold, bags, Path('cache'), 1);"
        "print(mh.write_report('runs/fold'))"
    )
    trained = run(python, tmp_path, str(python), "-W", "ignore", "-c", code)
    assert trained.returncode == 0, trained.stderr
    assert "<html" in (tmp_path / trained.stdout.split()[-1]).read_text()  # the templates are there


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_the_page_alone_leads_from_clam_to_a_report(python: Path, tmp_path: Path):
    """Every command of docs/own_slides.md, outside of the checkout; the home folder is the page's."""
    write_clam(tmp_path)
    started = time.monotonic()
    for command in [SHARDS[0], *AFTER]:
        done = run(python, tmp_path, *shlex.split(command), HOME=str(tmp_path), MHIMDIST_HOME="")
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert time.monotonic() - started < MAX_JOURNEY_S
    mine = tmp_path / "mhimdist" / "runs" / "mine"
    assert "AUC" in (mine / "table.md").read_text()
    assert (mine / "report.html").exists()
    assert len(list(tmp_path.glob("predictions/heatmaps/*/heatmap.png"))) == NUM_SLIDES


def test_the_doctor_knows_the_tested_versions(python: Path, tmp_path: Path):
    done = run(python, tmp_path, str(python), "-m", "mhimdist.doctor", "--json", "--timeout-s", "300")
    found = {f"{each['area']}: {each['subject']}": each for each in json.loads(done.stdout)["findings"]}
    assert found["python: packages"]["status"] == "fine", found["python: packages"]
    assert "does not say" not in found["python: tested versions"]["found"]


def test_each_command_of_the_wheel_explains_itself(python: Path, tmp_path: Path):
    for name in PROJECT.get("scripts", {}):
        done = run(python, tmp_path, str(python.parent / name), "--help")
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout or "usage" in done.stdout
    modules = ("mhimdist.doctor", "data_prep.shard")
    for module in modules:
        done = run(python, tmp_path, str(python), "-m", module, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"Usage: python -m {module} ")


def test_the_metadata_lead_somewhere():
    assert metadata.version("mhimdist") == PROJECT["version"]
    assert "Typing :: Typed" in PROJECT["classifiers"]
