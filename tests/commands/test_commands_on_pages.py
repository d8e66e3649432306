"""Every command `mhimdist ...` on a page is understood; others test what it then does."""

import re
import shlex

import pytest
from job_scripts import ROOT

from mhimdist.commands.main import front
from mhimdist.config.parsing import parsed

BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINES = {
    line.partition("  #")[0].strip()
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    for block in BLOCK.findall(page.read_text())
    for line in block.splitlines()
    if line.startswith("mhimdist")
}


def test_pages_show_commands():
    assert len(LINES) > 10


@pytest.mark.parametrize("line", sorted(LINES))
def test_it_is_understood(line, capsys, tmp_path, monkeypatch):
    words = shlex.split(line.partition(" > ")[0])[1:]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text("kind: tune\nspace: {loss.alpha: {uniform: [0, 0.7]}}\n")
    if not words or words[-1].startswith("--help"):
        with pytest.raises(SystemExit) as ended:
            parsed(front(), words, prog="mhimdist")
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith("Usage: mhimdist")
    else:
        assert callable(parsed(front(), words, prog="mhimdist"))
