"""The command `mhimdist`: its help is light and fits a screen, its mistakes are explained."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
from front_door import all_commands, command_of, long_help
from job_scripts import ROOT

from mhimdist.commands.main import PROG, call, front
from mhimdist.commands.table import SUBMITTED, TABLE, Entry
from mhimdist.config.command_line import OptionsCommand
from mhimdist.config.help_page import first_of, panels
from mhimdist.config.option_groups import GROUPS

HEAVY = ("torch", "ray", "optuna", "pandas", "sklearn", "scipy", "plotly", "matplotlib", "triton", "nvidia")
ALL = all_commands()
ASKED = {
    *("shard", "verify", "inspect", "merge", "data", "train", "cross-validate", "tune", "ablate", "predict"),
    *("heatmap", "report", "compare", "export", "submit", "cluster"),
}


def run(*words, **environment):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "mhimdist", *words]
    env = os.environ | {"COLUMNS": "80", "LINES": "24"} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def status_of(words, capsys):
    """The status with which a command line ends in this process, and what it said on stderr."""
    with pytest.raises(SystemExit) as ended:
        call(words)
    return ended.value.code, capsys.readouterr().err


def test_every_command_is_there():
    assert set(front().entries) >= ASKED
    assert set(SUBMITTED) <= set(front().entries)


def test_the_help_fits_a_screen_and_loads_next_to_nothing():
    code = (
        "import sys; from mhimdist.commands.main import call\n"
        "try: call(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print(len(sys.modules), sorted(set(sys.modules) & set({[*HEAVY, 'pydantic', 'rich']!r})))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    spent_s = time.perf_counter() - started
    *lines, loaded = done.stdout.splitlines()
    number, heavy = loaded.split(" ", 1)
    assert heavy == "[]"
    assert int(number) < 200
    assert spent_s < 5  # .2 s if nothing else runs
    assert len(lines) <= 23  # a prompt is the 24th
    assert max(map(len, lines)) <= 80
    for name in front().entries:
        assert any(re.search(rf"\b{name}\b", line) for line in lines)


def test_no_help_loads_what_only_work_needs():
    """One process after another would take a minute; this one asks for every help and looks once."""
    code = (
        "import sys; from mhimdist.commands.main import call\n"
        f"for words in {ALL!r}:\n"
        "    for option in ('--help', '--help-all'):\n"
        "        try: call([*words, option])\n"
        "        except SystemExit as end: assert end.code == 0, words\n"
        f"        assert not set(sys.modules) & set({HEAVY!r}), words"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_shows_few_options_first_and_all_on_request(words):
    command, ctx = command_of(words)
    assert isinstance(command, OptionsCommand)
    short, long = command.get_help(ctx), long_help(words)
    named = {setting.name for setting in command.settings}
    assert set(first_of(command.options)) <= named
    options = [setting for setting in command.settings if not setting.is_group]
    shown = [setting for setting in options if f"\n  {setting.option}" in short]
    assert len(shown) <= 15
    if len(options) > 15:
        assert first_of(command.options)
        assert "--help-all" in short
    for setting in options:
        assert setting.option in long or setting.field.metadata, setting.name
        assert setting.description, setting.name
    for text in (short, long):
        assert max(len(line) for line in text.splitlines() if "|" not in line) <= 110
    panelled = [name for names in getattr(command.options, "PANELS", {}).values() for name in names]
    assert len(panelled) == len(set(panelled))
    assert set(panelled) <= named or command.options.PANELS is GROUPS  # see the next test
    assert sum(len(panel) for _, panel in panels(command.options, command.settings)) == len(command.settings)


def test_the_headings_of_commands_that_train_are_of_options_that_they_have():
    options = [command.options for words in ALL if (command := command_of(words)[0])]
    training = [each for each in options if getattr(each, "PANELS", {}) is GROUPS]
    assert len(training) == 4
    known = {name for each in training for name in each.model_fields if name != "space"}
    assert {name for names in GROUPS.values() for name in names} == known


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tun"], "no command 'tun' (did you mean tune?)"),
        (["cluster", "locl"], "no command 'locl' (did you mean local?)"),
        (["tune", "--num-trails", "3"], "unrecognized arguments: --num-trails (did you mean --num-trials?)"),
        (["cross-validate", "--epochs", "3"], "(did you mean --train.epochs?)"),
        (["train", "train.epohs=3"], "no setting 'train.epohs' (did you mean train.epochs?)"),
        (["data", "digits-c17"], "argument NAME: invalid choice: 'digits-c17' (did you mean digits-c16?)"),
        (
            ["data", "digits-c16", "--raw"],
            "--raw are for classic benchmarks, and digits-c16 is none",
        ),
        (["data", "musk1", "--seed", "1"], "are for embedded sets, and musk1 is none"),
        (["inspect"], "the following arguments are required: DIR"),
        (["merge", "one"], "the following arguments are required: --out"),
        (["tune", "one.yaml", "two.yaml"], "expected one file of settings, got one.yaml, two.yaml"),
    ],
)
def test_a_mistake_is_an_error_of_usage_with_the_nearest_name(words, message, capsys):
    status, said = status_of(words, capsys)
    assert status == 2
    assert message in said


def test_a_wrong_value_names_the_nearest_one():
    done = run("tune", "--sampler", "tpee")
    assert done.returncode == 1
    assert done.stderr.startswith("error: sampler: Input should be 'tpe'")
    assert done.stderr.endswith("got 'tpee' (did you mean tpe?)\n")
    assert "Traceback" in run("-v", "tune", "--sampler", "tpee").stderr


def test_the_exit_codes_are_explained(capsys):
    with pytest.raises(SystemExit):
        call(["--exit-codes"])
    text = capsys.readouterr().out
    for code in (0, 1, 2, 75, 130):
        assert re.search(rf"^ *{code} ", text, re.MULTILINE)
        assert f"| {code} |" in (ROOT / "docs" / "commands.md").read_text()


def completed(line):
    """What bash would offer for the last word of a line."""
    environment = {"_MHIMDIST_COMPLETE": "bash_complete", "COMP_WORDS": line}
    return run(COMP_CWORD=str(len(line.split(" ")) - 1), **environment).stdout.split()


def test_shells_complete_commands_options_choices_and_files():
    assert completed("mhimdist cr") == ["plain,cross-validate"]
    assert completed("mhimdist tune --num-tr") == ["plain,--num-trials"]
    assert completed("mhimdist tune --sampler c") == ["plain,cmaes"]
    assert completed("mhimdist predict --models r") == ["file,r"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell, capsys):
    with pytest.raises(SystemExit):
        call(["--completion", shell])
    assert "_MHIMDIST_COMPLETE" in capsys.readouterr().out


def test_every_entry_names_what_exists():
    entries = [entry for panel in TABLE.values() for entry in panel.values()]
    flat = [e for entry in entries for e in ([entry] if isinstance(entry, Entry) else entry.values())]
    for entry in flat:
        for place in (entry.options, entry.action):
            module, _, name = place.partition(":")
            path = ROOT / f"{module.replace('.', '/')}.py"
            assert re.search(rf"^(class|def) {name}\b", path.read_text(), re.MULTILINE), place


def test_the_wheel_installs_the_command():
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {PROG: "mhimdist.commands.main:main"}
    assert json.dumps(run("--version").stdout.split()) == '["mhimdist", "0.1.0"]'
