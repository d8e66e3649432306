"""docs/quickstart.md: its commands and its ten lines, on a smaller set of digits."""

import contextlib
import re
import shlex

from job_scripts import ROOT

from data_prep import digits
from mhimdist.commands.main import call

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
(BLOCK,) = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
ENVIRONMENT, INSTALL, BUILD = BLOCK.splitlines()


def test_the_ten_lines_train_a_model(tmp_path, monkeypatch, capsys):
    build = digits.build
    monkeypatch.setattr(
        digits, "build", lambda name, out, **given: build(name, out, **given | {"scale": 0.01})
    )
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 10
    with contextlib.chdir(tmp_path):
        call(shlex.split(BUILD)[1:])
        assert (tmp_path / "data" / "digits-c16" / "manifest.parquet").exists()
        capsys.readouterr()
        exec(CODE, {})
        *epochs, auc = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in epochs] == ["0", "1", "2", "3", "4"]
    assert all(0 < float(line.split()[2]) < 1 for line in epochs)
    assert 0 <= float(auc) <= 1


def test_the_install_command_names_a_file_that_pins_versions():
    assert ENVIRONMENT.startswith("python3.11 -m venv ")
    words = shlex.split(INSTALL)
    assert words[:2] == ["pip", "install"]
    assert (ROOT / words[words.index("--constraint") + 1]).exists()
    assert words[-1] == "."
