"""The batch script for Slurm: the shipped one, and that nothing a user writes becomes shell code."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhimdist.cluster.slurm import main, script
from mhimdist.cluster.slurm_options import OWN_DIRECTIVES, SlurmScript
from mhimdist.errors import ConfigError

ROOT = Path(__file__).parents[2]


def _directives(text: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)


def _value_in_bash(text: str, line: str, show: str) -> list[str]:
    """What bash makes of one line of a script; only this line runs."""
    (found,) = re.findall(rf"^{line}.*(?:\n  .*)*$", text, re.MULTILINE)
    code = f"{found}\nprintf '%s\\0' {show}"
    done = subprocess.run(
        [shutil.which("bash"), "-uc", code], capture_output=True, text=True, env={"PATH": "/p"}, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_the_shipped_script_is_what_is_written_by_default():
    assert (ROOT / "cluster" / "slurm.sbatch").read_text() == script(SlurmScript())


def test_the_shipped_script_says_what_slurm_must_do():
    directives = _directives(script(SlurmScript()))
    for wanted in ("--signal=B:TERM@90", "--requeue", "--open-mode=append", "--nodes=2", "--gpus-per-node=4"):
        assert wanted in directives
    assert not [each for each in directives if each.startswith(("--account", "--partition"))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gpus": 0, "memory_gib": 0, "venv": None},
        {"image": Path("/shared/a b.sif"), "modules": "cuda/13.0 apptainer", "interface": "ib0"},
        {"home": Path("/shared/it's"), "command": "python x.py 'a b' \"$(rm -rf ~)\" ; true"},
    ],
)
def test_the_linter_finds_nothing(options, tmp_path):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which(
        "shellcheck"
    )
    file = tmp_path / "job.sbatch"
    file.write_text(script(SlurmScript(**options)))
    subprocess.run(["bash", "-n", str(file)], check=True)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; the dev extra brings it")
    done = subprocess.run([shellcheck, str(file)], capture_output=True, text=True)
    # SC2016: what a user quotes is meant as it is written. SC2089 and SC2090: of a quote in a path, which the
    # next test reads back.
    meant = ("SC2016", "SC2089", "SC2090")
    found = [line for line in done.stdout.splitlines() if " SC" in line]
    assert [line for line in found if not any(code in line for code in meant)] == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--account", "x; rm -rf ~"], "account"),
        (["--account", "x\n#SBATCH --nodes=99"], "account"),
        (["--partition", "gpu,$(id)"], "partition"),
        (["--name", "-x"], "name"),
        (["--qos", "a b"], "qos"),
        (["--gpu-type", "a100:8"], "gpu_type"),
        (["--output", "a b.log"], "output"),
        (["--output", "x\nrm -rf ~"], "output"),
        (["--interface", "eth0;id"], "interface"),
        (["--modules", "cuda;id"], "modules"),
        (["--extra", "constraint=a100;id"], "extra"),
        (["--extra", "signal=B:KILL@1"], "signal is written by another option"),
        (["--extra", "no-requeue"], "no-requeue is written by another option"),
        (["--command", "python 'x"], "No closing quotation"),
        (["--command", " "], "expected a command"),
        (["--command", "python x.py\nrm -rf ~"], "on one line"),
        (["--home", "runs"], "absolute path"),
        (["--home", "/a\nb"], "on one line"),
        (["--venv", "/a:/b"], "without colon"),
        (["--image", "/a.sif", "--venv", "/v"], "image and venv"),
        (["--out", "a\nrm"], "on one line"),
        (["--time", "soon"], "days-hours"),
        (["--time", "2"], "expected more than 150 s"),
        (["--time", "1:30:00", "--signal-s", "4000"], "signal"),
        (["--nodes", "0"], "nodes"),
        (["--gpus", "0", "--gpu-type", "a100"], "gpus is 0"),
        (["--node", "2"], "node"),
    ],
)
def test_what_could_do_harm_or_cannot_work_is_refused(arguments, named, capsys):
    try:
        with pytest.raises(ConfigError, match=re.escape(named)):
            SlurmScript.from_command_line(arguments)
    except SystemExit:  # argparse refuses unknown options itself
        assert named in capsys.readouterr().err


def test_directives_that_others_own_are_all_written_or_refused():
    written = {
        each.partition("=")[0].removeprefix("--")
        for each in SlurmScript(account="a", partition="b", qos="c").directives
    }
    assert written <= OWN_DIRECTIVES


@given(st.lists(st.text().filter(str.isprintable), min_size=1, max_size=4))
def test_bash_sees_the_command_as_it_was_given(words):
    job = SlurmScript(command=shlex.join(words))
    assert _value_in_bash(script(job), "command=", '"${command[@]}"') == words


@pytest.mark.parametrize("path", ["/shared/a b", "/shared/it's", "/shared/$(id)", "/shared/`id`", '/s/"x"'])
def test_bash_sees_paths_as_they_were_given(path):
    text = script(SlurmScript(home=Path(path), venv=Path(path)))
    assert _value_in_bash(text, "export MHIMDIST_HOME=", '"$MHIMDIST_HOME"') == [path]
    assert _value_in_bash(text, "export PATH=", '"$PATH"') == [f"{path}/bin:/p"]
    text = script(SlurmScript(home=Path(path), image=Path(path), gpus=0))
    expected = ["apptainer", "exec", f"--bind={path},/shared/shards", path]
    assert _value_in_bash(text, "runner=", '"${runner[@]}"') == expected


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:05", 5405),
        ("2-1", 176400),
        ("2-1:30", 178200),
        ("0-0:3:1", 181),
    ],
)
def test_times_mean_what_slurm_means(time, seconds):
    assert SlurmScript(time=time).seconds == seconds


def test_options_become_directives():
    text = script(
        SlurmScript.from_command_line(
            [
                *(
                    "--nodes",
                    "3",
                    "--gpus",
                    "8",
                    "--gpu-type",
                    "a100",
                    "--time",
                    "2-0",
                    "--partition",
                    "gpu,long",
                ),
                *(
                    "--account",
                    "path.ology",
                    "--extra",
                    "--constraint=a100|h100 exclusive",
                    "--signal-s",
                    "120",
                ),
            ]
        )
    )
    wanted = {"--nodes=3", "--gpus-per-node=a100:8", "--time=2-0", "--partition=gpu,long"}
    wanted |= {"--account=path.ology", "--constraint=a100|h100", "--exclusive", "--signal=B:TERM@120"}
    assert wanted <= set(_directives(text))
    assert "# 120 s before the time limit" in text


def test_the_command_writes_a_file_or_prints(tmp_path, capsys, monkeypatch):
    file = tmp_path / "my sweep.sbatch"
    monkeypatch.setattr(sys, "argv", ["slurm", "--nodes", "1", "--out", str(file)])
    main()
    assert f"sbatch '{file}'" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["slurm", "--nodes", "1"])
    main()
    printed = capsys.readouterr().out
    assert "--nodes=1" in _directives(printed)
    assert printed.splitlines()[1:4] == file.read_text().splitlines()[1:4]
