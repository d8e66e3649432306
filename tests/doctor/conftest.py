"""What the tests of the doctor share."""

from pathlib import Path

import pytest

from mhimdist.doctor.options import Doctor


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """A healthy home folder, and a user without a token."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home").mkdir()
    return Doctor(home=tmp_path / "home")
