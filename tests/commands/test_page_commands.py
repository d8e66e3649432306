"""Every `mhimdist` command of README and docs/ is understood: its options exist, their values are read."""

import re
import shlex

import pytest
from front_door import parsed_only
from job_scripts import ROOT

from mhimdist.commands.main import front

COMMAND = re.compile(r"^mhimdist [\w-]+ .*?(?=  #|$)", re.MULTILINE)
COMMANDS = {
    command.strip(): page.name
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for command in COMMAND.findall(block)
}
SHOWS = ("--help", "--help-all")


@pytest.mark.parametrize("command", [each for each in COMMANDS if not each.endswith(SHOWS)])
def test_the_command_is_understood(command, tmp_path, monkeypatch):
    words = shlex.split(command.partition(" > ")[0])[1:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MHIMDIST_HOME", str(tmp_path))
    for file in (word for word in words if word.endswith((".yaml", ".yml"))):
        kind = words[0] if words[0] != "config" else "tune"
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(
            f"kind: {kind}\n" + ("space: {loss.alpha: {uniform: [0.0, 0.7]}}\n" * (kind == "tune"))
        )
    assert callable(parsed_only(words))


def test_the_pages_show_almost_every_command():
    assert {command.split()[1] for command in COMMANDS} >= set(front().entries) - {"merge", "data", "ablate"}
