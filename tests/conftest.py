"""The hooks and fixtures that all test modules share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults_matrix import Matrix, rows_of
from memory_bags import MemoryBags, gaussian_bags

from mhimdist import process

torch.set_num_threads(1)  # a small step is faster on one thread, and the test machine has few cores


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that asks for the matrix of faults."""
    # Given as `--faults=FILE`: pytest would take a separate FILE, if it exists, for where the tests are.
    parser.addoption("--faults", metavar="FILE", help="print the matrix of faults and write it to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Collect the matrix of faults if it is asked for."""
    if config.getoption("--faults"):
        config.pluginmanager.register(Matrix(Path(config.getoption("--faults")).absolute()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Count the tests that need a GPU as skipped if there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """If processes share the tests, keep all tests with Ray together, and those of each module.

    Two Rays at once would contend for cores that each counts as its own, and a module's tests share their
    set-up. The tests with Ray take longest, so they go first.
    """
    for item in items:
        if rows := rows_of(item):
            item.user_properties.append(("faults", rows))
    if not hasattr(config, "workerinput"):
        return
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: groups[item] != "ray")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a pytest whose tests pytest-xdist cannot group: it would start two Rays at once, silently."""
    if hasattr(session.config, "workerinput") and session.config.getvalue("loadgroup"):
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist does not group the tests"


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("ray")
    if marker is not None and marker.args:
        return marker.args[0]
    if marker is not None or "cluster" in getattr(item, "fixturenames", ()):
        return "ray"
    module = item.getparent(pytest.Module)
    return module.name if module is not None else item.name


@pytest.fixture(scope="session", autouse=True)
def _a_command_ends_and_the_tests_go_on() -> Iterator[None]:
    """Have a command that fails in this process raise `SystemExit`: `process.leave` would end the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(process, "leave", sys.exit)
        yield


@pytest.fixture
def bags() -> MemoryBags:
    return gaussian_bags()
