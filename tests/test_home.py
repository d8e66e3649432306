"""Where data, runs and caches live."""

from pathlib import Path

import pytest

from mhimdist.home import home


def test_home_is_the_variable_or_below_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for value, expected in (
        ("/storage/mhimdist", Path("/storage/mhimdist")),
        ("~/elsewhere", tmp_path / "user/elsewhere"),
        ("relative", tmp_path / "relative"),
        ("", tmp_path / "user/mhimdist"),
    ):
        monkeypatch.setenv("MHIMDIST_HOME", value)
        assert home() == expected
    monkeypatch.delenv("MHIMDIST_HOME")
    assert home() == tmp_path / "user/mhimdist"
