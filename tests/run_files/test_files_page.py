"""docs/files.md says what the reader does: its space is searched, its mistakes are named in these words."""

import re
from pathlib import Path

import pytest

from mhimdist.config.presets import preset
from mhimdist.config.yaml_nodes import parse, typed
from mhimdist.errors import ConfigError
from mhimdist.run_files.begin import init
from mhimdist.run_files.read import read_job
from mhimdist.search.proposals import examine
from mhimdist.search.written_space import WrittenSpace

PAGE = (Path(__file__).parent.parent.parent / "docs" / "files.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def _blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_its_mistakes_are_named_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (wrong,) = [text for text in _blocks("yaml") if "flods" in text]
    first, second = (" ".join(text.split()) for text in _blocks("text"))
    Path("wrong.yaml").write_text(wrong)
    with pytest.raises(ConfigError) as caught:
        read_job("cross-validate", "wrong.yaml")
    assert str(caught.value) == first
    Path("wrong.yaml").write_text(wrong.replace("flods", "folds").replace("rat:", "rate:"))
    with pytest.raises(ConfigError) as caught:
        read_job("cross-validate", "wrong.yaml")
    assert str(caught.value) == second


def test_its_space_can_be_searched():
    (text,) = [text for text in _blocks("yaml") if text.startswith("space:")]
    space = typed(parse(text.encode(), "files.md"))["space"]
    assert examine(WrittenSpace(space), preset("c16", "abmil")).feasible_share > 0.5


def test_its_lines_are_those_of_a_new_file():
    (text,) = [text for text in _blocks("yaml") if "num_trials" in text]
    file = init("c16-abmil", "tune")
    for part in text.split("\n\n"):
        assert part.strip() in file


def test_its_overrides_are_read(tmp_path):
    (tmp_path / "sweep.yaml").write_text(init("c16-abmil", "tune"))
    overrides = re.findall(r"`([a-z_.0-9]+=[^`]+)`", PAGE)
    assert len(overrides) == 4
    job = read_job("tune", tmp_path / "sweep.yaml", overrides)
    assert job.options.seeds == (1, 2, 3)
    assert job.options.train.tf32 is True
    assert job.space.tree["loss.alpha"]["uniform"] == [0.01, 0.5]
