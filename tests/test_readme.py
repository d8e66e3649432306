"""README and the pages of docs/: their commands and Python blocks run, and all that they name exists.

Each page runs from top to bottom in a folder such as a reader may have. Python blocks of a page run one after
the other in one process, like the cells of a notebook.
"""

import contextlib
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from front_door import all_commands, long_help
from job_scripts import run_here
from page_folders import write_predictions, write_survival, write_whole_run
from written_runs import MASKED, PLAIN, write_cross_validation

from data_prep import classic, digits
from data_prep.readers.stated import Stated
from data_prep.shard import shard
from data_prep.shard_options import ShardOptions
from mhimdist.commands.main import call, front
from mhimdist.cross_validation import compare
from mhimdist.data.manifest import Manifest
from mhimdist.paper import ablation
from mhimdist.sweep import run as sweep_run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
MAX_README_LINES = 200

each_page = pytest.mark.parametrize("page", TEXTS)
STARTS_RAY = (
    "run_cross_validation(",
    "run_sweep(",
    "load_student(",
    "mh.compare(",
    "mh.predict(",
    "write_report(",
)
"""Python blocks with these are slow, or need what those leave."""
COMMANDS_ELSEWHERE = {
    f"docs/{page}.md" for page in ("export", "own_masking", "own_slides", "quickstart", "reproducing")
}
"""Pages whose commands another test runs, which is named after the page."""
OTHER_TESTS = {
    *COMMANDS_ELSEWHERE,
    *(f"docs/{page}.md" for page in ("data", "extensions", "shard_format", "tasks")),
}
"""Pages whose Python blocks another test runs."""
NEEDS_A_CLUSTER = (
    *("ray up ", "ray down ", "ray dashboard ", "(umask 077; RAY_AUTH_MODE=token ray get-auth-"),
    *("nvidia-cuda-mps-control -d", "echo quit | nvidia-cuda-mps-control"),
    # test_cluster_page.py reads these.
    *("mhimdist cluster slurm ", "sbatch ", "scancel ", "kubectl ", "docker ", "apptainer "),
)
OPTIONS_OF_OTHERS = re.findall(  # of Ray, Slurm, Docker, CLAM, TRIDENT, DSMIL and pip
    r"--\S+",
    "--generate --working-dir --batch --signal --from-literal --tag --rm --shm-size --volume "
    "--feat_dir --job_dir --dataset --constraint --requirement --no-deps",
)
SHARDS = ("python -m data_prep.", *(f"mhimdist {name} " for name in ("shard", "verify", "inspect")))


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


def _commands(page: str) -> list[str]:
    lines = [line for block in _blocks(page, "bash") for line in block.splitlines()]
    return [command for line in lines if (command := line.partition("  #")[0].strip())]


def _prose(page: str) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


def _all_commands(start: str) -> list[str]:
    """The commands of all pages with such a start, each once, but those that the test of their page runs."""
    elsewhere = {command for page in COMMANDS_ELSEWHERE for command in _commands(page)}
    found = (c for page in TEXTS for c in _commands(page) if c.startswith(start) and c not in elsewhere)
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """A folder with features, labels, a data set and the repository's own folders, as a user may have."""
    folder = tmp_path_factory.mktemp("furnished")
    digits.write_features("digits-c16", folder / "source", scale=0.01)
    (folder / "source" / "features").rename(folder / "features")
    (folder / "source" / "labels.csv").rename(folder / "labels.csv")
    shard(folder / "features", folder / "labels.csv", folder / "data" / "digits-c16")
    name = Manifest.read(folder / "data" / "digits-c16").info.classes[0]
    for encoder in ("uni", "virchow2"):
        shutil.copytree(folder / "features", folder / encoder)
    write_survival(folder)
    for new in ("more", "other"):
        (folder / new).mkdir()
        np.save(folder / new / f"{new}.npy", np.ones((3, 16), np.float32))
        (folder / f"{new}.csv").write_text(f"slide,label\n{new},{name}\n")
    shard(
        folder / "other", folder / "other.csv", folder / "other" / "made", stated=Stated(encoder="resnet50")
    )
    for path in (folder / "other" / "made").iterdir():
        path.rename(folder / "other" / path.name)
    return folder


@pytest.fixture
def workplace(furnished, tmp_path):
    """A copy for one page."""
    folder = shutil.copytree(furnished, tmp_path / "workplace")
    (folder / "jobs").symlink_to(ROOT / "jobs")
    return folder


def _run(arguments: list[str], workplace: Path) -> str:
    env = os.environ | {
        "MHIMDIST_HOME": str(workplace / "home"),
        "OMP_NUM_THREADS": "1",  # two idle threads that wait for each other are slow on a busy machine
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(arguments, cwd=workplace, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _run_data_prep(command: str, workplace: Path) -> None:
    """Run a command of `data_prep` in this process: its imports take seconds."""
    arguments = command.split()
    if "--repair" in arguments:
        name = Manifest.read(workplace / "shards").info.shards[0].name
        with (workplace / "shards" / name).open("r+b") as file:
            file.truncate(1000)
    with contextlib.chdir(workplace):
        if arguments[0] == "mhimdist":
            call(arguments[1:])
        else:
            importlib.import_module(arguments[2]).main(arguments[3:])


@each_page
def test_every_command_has_a_test(page):
    """A command that no test of this file runs or reads must not be on a page."""
    known = (
        *("mhimdist", "python -m data_prep.", "ray job submit --working-dir . -- python -m data_prep.shard "),
        *("python jobs/", "python -m mhimdist.cluster.submit ", "make ", "python3.11 -m venv "),
        *("python benchmarks/", "python -m benchmarks.", "pytest tests/", "pip install ", *NEEDS_A_CLUSTER),
    )
    assert [command for command in _commands(page) if not command.startswith(known)] == []


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("README.md", ["398 of 20 cases"]),
        (
            "docs/data.md",
            [
                "OS_MONTHS",
                "in each of 2 feature sets",
                "399 bags, 1 of them new",
                "both: 400 bags",
                "repaired: ",
            ],
        ),
    ],
)
def test_the_commands_of_data_prep_run(page, said, workplace, capsys):
    for command in _commands(page):
        if command.startswith(SHARDS):
            _run_data_prep(command, workplace)
    printed = capsys.readouterr().out
    for words in ("398 bags", *said):
        assert words in printed
    assert (workplace / "shards.png").exists()
    if page == "docs/data.md":
        (block,) = _blocks(page, "python")
        lines = _run([sys.executable, "-c", block], workplace).splitlines()
        assert len(lines) == 398
        assert re.fullmatch(r"slide_\d+ \(\d+, 16\)", lines[0])


def test_no_other_page_shards():
    pages = {page for page in TEXTS if any(c.startswith(SHARDS) for c in _commands(page))}
    assert pages - COMMANDS_ELSEWHERE == {"README.md", "docs/data.md"}


@pytest.mark.parametrize(
    "page", [page for page in TEXTS if page not in OTHER_TESTS and _blocks(page, "python")]
)
def test_the_python_blocks_run(page, workplace, capsys):
    blocks = [block for block in _blocks(page, "python") if not any(name in block for name in STARTS_RAY)]
    with contextlib.chdir(workplace):
        exec("\n".join(blocks), {"__name__": "__main__"})  # here, as imports take seconds
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed].count("0") == 1  # the first epoch
    assert "auc" in printed[-1] or 0 <= float(printed[-1]) <= 1


def test_pages_import_public_names_only():
    """What pages import of this package is `import mhimdist as mh`, and its names are exported.

    A task or an extension of one's own derives from a class that only those who write one need.
    """
    import mhimdist

    for page in TEXTS.keys() - {"docs/extensions.md", "docs/own_masking.md", "docs/tasks.md"}:
        for block in _blocks(page, "python"):
            assert re.findall(r"^(?:from|import) mhimdist.*$", block, re.MULTILINE) in (
                [],
                ["import mhimdist as mh"],
            )
            assert set(re.findall(r"\bmh\.(\w+)", block)) <= set(mhimdist.__all__), page
    named = re.findall(r"^\| (`.*?) \|", TEXTS["docs/python.md"], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(named))) == {n for n in mhimdist.__all__ if n[0] != "_"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_python_blocks_run(workplace):
    printed = _run([sys.executable, "-c", "\n".join(_blocks("docs/python.md", "python"))], workplace)
    assert "MHIM (abmil)" in printed
    assert '"num_trials": 2' in printed


def test_sharding_on_a_cluster_is_a_command_that_is_understood():
    start = "ray job submit --working-dir . -- python -m data_prep.shard"
    (command,) = _all_commands(start)
    options = ShardOptions.from_command_line(command.removeprefix(start).split())
    assert str(options.out) == "/shared/shards/c16"


@pytest.mark.parametrize("command", _all_commands("python jobs/"))
def test_the_options_of_jobs_are_understood(command, monkeypatch):
    """Each job is run up to the call that would start Ray."""
    started = []
    for module, name in (
        (compare, "run_cross_validation"),
        (sweep_run, "run_sweep"),
        (ablation, "run_ablation"),
    ):
        monkeypatch.setattr(module, name, lambda *given, data=None: started.append((given, data)))
    monkeypatch.setattr(digits, "ensure", lambda data, home: data)
    monkeypatch.setattr(classic, "ensure", lambda data, home, file: data)
    monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    ((given, data),) = started
    job = given[0]
    if isinstance(job, ablation.Ablation):
        assert ablation.select(*given)  # its rows are in its tables
    if "s3://" in command:
        assert data == "s3://bucket/shards/c16"
        assert str(job.train.loading.shard_cache) == "/local/cache"
        assert job.train.loading.shard_cache_gib == 300


def _quick(command: str) -> list[str]:
    """A job's command with the least to train."""
    options = {"--train.epochs": "1", "--folds": "2", "--run-folds": "1", "--seeds": "1"}
    if "ablate" in command:
        del options["--train.epochs"]
        options |= {"--epochs": "1", "--tables": "1", "--rows": "AB-MIL"}
    if "tune" in command:
        options = {"--train.epochs": "1", "--num-trials": "1", "--final-seeds": "1"}
    for name, value in options.items():
        command = re.sub(rf"{name} \S+", "", command) + f" {name} {value}"
    return command.split()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "command",  # tests/jobs/test_classic_job.py runs its own
    [
        command
        for command in _all_commands("python jobs/")
        if not any(words in command for words in ("://", "/shared/", "jobs/classic.py"))
    ],
)
def test_the_jobs_run(command, workplace):
    (workplace / "shards").symlink_to(workplace / "data" / "digits-c16")
    printed = _run(_quick(command), workplace)
    assert ("inflation" in printed) == ("both" in command)
    assert "Best trials" in printed or "tables: " in printed


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_was_trained_predicts(workplace):
    (workplace / "shards").symlink_to(workplace / "data" / "digits-c16")
    _run(_quick("python jobs/train_c16.py"), workplace)
    (workplace / "home" / "runs" / "cross_validation").symlink_to("train_c16")
    for command in _all_commands("mhimdist predict "):
        assert "slides by " in _run(shlex.split(command), workplace)


def _do(command: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Do a command of `mhimdist` in this process; returns its words."""
    words = shlex.split(command)[1:]
    monkeypatch.setenv("MHIMDIST_HOME", str(home))
    with contextlib.chdir(home):
        call(words)
    return words


@pytest.mark.parametrize("command", _all_commands("mhimdist compare "))
def test_the_comparisons_run(command, tmp_path, monkeypatch, capsys):
    """On folders as finished runs leave them."""
    for name, shift in (("train_c16", 1.2), ("tune_c16", 1.0), ("cross_validation", 1.2), ("tune", 1.0)):
        write_cross_validation(
            tmp_path / "runs" / name, {"MHIM (abmil)": (MASKED, shift), "abmil": (PLAIN, 0.8)}
        )
    words = _do(command, tmp_path, monkeypatch)
    assert "On 60 test cases of digits (3 folds x 2 seeds, strict protocol), " in capsys.readouterr().out
    if "--out" in words:
        assert (tmp_path / words[words.index("--out") + 1] / "comparison.md").exists()


@pytest.mark.parametrize("command", _all_commands("mhimdist report "))
def test_the_reports_run(command, tmp_path, monkeypatch, capsys):
    """On folders as finished runs and predictions leave them."""
    for name in ("train_c16", "cross_validation"):
        write_whole_run(tmp_path / "runs" / name)
    write_predictions(tmp_path / "predictions")
    lines = [f"s{i:03d},{'tumor' if i % 2 else 'normal'}\n" for i in range(60)]
    (tmp_path / "labels.csv").write_text("slide,label\n" + "".join(lines))
    _do(command, tmp_path, monkeypatch)
    written = Path(re.search(r"report: (.*?\.html)", capsys.readouterr().out)[1])
    text = (tmp_path / written).read_text()
    assert "<h2>Results</h2>" in text
    assert ("<h2>Subgroups by label</h2>" in text) == ("--subgroups" in command)
    assert (tmp_path / "figures" / "roc.pdf").exists() == ("--pdf" in command)


def test_the_job_that_is_submitted_to_a_cluster_fits_its_upload():
    starts = "python -m mhimdist.cluster.submit ", "mhimdist submit "
    submitted = [command.split() for start in starts for command in _all_commands(start)]
    assert ["--data", "/shared/shards/c16"] in [words[-2:] for words in submitted]
    (check,) = [words for words in submitted if "--check" in words]
    assert "to upload" in _run([sys.executable, *check[1:]], ROOT)


def test_a_newcomer_reads_at_most_so_many_lines():
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def test_the_readme_begins_with_two_commands():
    first, *_ = _blocks("README.md", "bash")
    assert re.findall(r"^make ([a-z-]+)", first, flags=re.MULTILINE) == ["demo", "test"]


@each_page
def test_the_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", TEXTS[page], flags=re.MULTILINE):
        assert re.search(rf"^{target}:.*  ## ", makefile, flags=re.MULTILINE), target


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_readme_leads_to_every_page():
    for page in TEXTS:
        assert page == "README.md" or f"]({page})" in TEXTS["README.md"], page


@each_page
def test_every_file_that_is_named_exists(page):
    folders = "jobs|benchmarks|tests|cluster|data_prep|mhimdist"
    named = re.findall(rf"(?:^|[` ])((?:{folders})/[\w./-]+)", TEXTS[page], flags=re.MULTILINE)
    made = {command.partition(" > ")[2] for command in _commands(page)}  # by an earlier command of the page
    for command in _commands(page):
        named += [word for word in command.split() if word.endswith(".yaml") and word not in made]
        named += [
            f"{m.replace('.', '/')}.py" for m in re.findall(r"-m ((?:benchmarks|mhimdist)\S+)", command)
        ]
    for name in named:
        assert (ROOT / name.rstrip(".")).exists(), name


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Every option of a command of this repository."""
    home, texts = tmp_path_factory.mktemp("home"), [long_help(words) for words in all_commands()]
    texts += [run_here(job.name, "--help-all", home=home).stdout for job in (ROOT / "jobs").glob("*.py")]
    texts += [file.read_text() for file in (ROOT / "benchmarks").rglob("*.py")]
    texts.append(" ".join(option for param in front().params for option in param.opts))
    return {option for text in texts for option in re.findall(r"--[a-z][\w.-]*\w", text)}


@each_page
def test_every_option_that_is_named_exists(page, options):
    for named in re.findall(r"(?<![\w-])--[a-z][\w.-]*\*?", TEXTS[page]):
        if named.endswith("*"):
            assert any(option.startswith(named[:-1]) for option in options), named
        else:
            assert named.rstrip(".") in {*options, *OPTIONS_OF_OTHERS}, named
