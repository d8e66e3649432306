"""Waits are counted as torch reports them; no GPU is needed, because torch only warns."""

import inspect
import warnings

import pytest
import torch
from host_waits import host_waits


@pytest.fixture(autouse=True)
def modes(monkeypatch):
    """In place of CUDA: torch's debug mode warns of itself when it is first set."""
    modes = []

    def set_mode(mode):
        modes.append(mode)
        if len(modes) == 1:
            warnings.warn("Synchronization debug mode is a prototype feature and does not yet", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return modes


def _wait():
    warnings.warn("called a synchronizing CUDA operation (Triggered internally at X.cpp:1)", stacklevel=1)


def test_each_wait_counts_for_its_line(modes):
    with host_waits() as waits:
        for _ in range(3):
            _wait()
        _ = torch.ones(2) + 1
    line = inspect.getsourcelines(_wait)[1] + 1
    assert waits == {f"tests/test_host_waits.py:{line}": 3}
    assert modes == ["warn", "default"]


def test_the_mode_ends_and_warnings_are_errors_again_after_an_error(modes):
    with pytest.raises(KeyError), host_waits():
        raise KeyError
    assert modes == ["warn", "default"]
    with pytest.raises(UserWarning, match="synchronizing"):
        _wait()


def test_other_warnings_stay_errors():
    with pytest.raises(UserWarning, match="something else"), host_waits():
        warnings.warn("something else", stacklevel=1)
