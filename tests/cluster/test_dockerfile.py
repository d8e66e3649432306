"""The Dockerfile: a linter reads it, what it copies exists, and what it installs is pinned.

No image is built here: that needs a daemon, and a base image from a registry.
"""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
COPIED = [word for line in LINES if line.startswith("COPY ") for word in line.split()[1:-1]]


def _program(name: str) -> str:
    beside = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if beside is None:
        pytest.skip(f"{name} is not installed; the dev extra brings it")
    return beside


def test_the_linter_finds_nothing():
    hadolint = _program("hadolint")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    bad = subprocess.run([hadolint, "-"], input="FROM debian\nRUN cd /\n", capture_output=True, text=True)
    assert bad.returncode != 0  # it would notice


def test_what_is_copied_exists_and_reaches_the_build():
    allowed = [
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert sorted(COPIED) == sorted(allowed)
    for name in COPIED:
        assert (ROOT / name).exists(), name


def test_the_code_is_copied_after_the_dependencies_are_installed():
    installed = next(i for i, line in enumerate(LINES) if "pip install" in line and "--constraint" in line)
    copied = next(i for i, line in enumerate(LINES) if line == "COPY mhimdist mhimdist")
    assert installed < copied
    (last,) = [line for line in LINES[copied:] if "pip install" in line]
    assert "--no-deps ." in last


def test_every_requirement_is_pinned_to_a_version_that_it_admits():
    (line,) = [line for line in LINES if "--constraint constraints.txt" in line]
    extras = re.search(r'"\.\[(.*?)\]"', line)[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in extras for r in project["optional-dependencies"][extra]),
    ]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pinned, text
        assert pinned[name] in requirement.specifier, (text, pinned[name])


def test_the_base_is_pinned_and_can_run_the_package():
    (base,) = [line.split()[1] for line in LINES if line.startswith("FROM ")]
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-bookworm", base)
    assert version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = re.fullmatch(r">=(\d+)\.(\d+)", project["requires-python"])
    assert tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))


def test_it_runs_as_nobody_in_particular_and_holds_no_secret():
    users = [line for line in LINES if line.startswith("USER ")]
    assert users == ["USER 1000"]
    assert LINES.index(users[0]) > max(i for i, line in enumerate(LINES) if line.startswith("RUN "))
    assert "useradd --uid 1000" in TEXT
    assert not [line for line in LINES if re.match(r"ADD |ARG |.*(TOKEN|PASSWORD|SECRET|_KEY)\b", line)]
    assert "RAY_AUTH_MODE=token" in TEXT
    for secret in (".env", ".ray/auth_token", ".git/config", "id_ed25519"):
        assert not any(fnmatch.fnmatch(secret, f"{name}*") for name in COPIED), secret


def test_the_versions_that_its_comments_name_are_ours():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r"mhimdist:(\d[\w.]*)", TEXT)) == {version}
