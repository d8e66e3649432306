"""The packages import exactly the dependencies that pyproject.toml declares."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("mhimdist", "data_prep", "jobs")
OURS = {"mhimdist", "data_prep", "jobs"}
NOT_DECLARED = {
    "triton": "CUDA builds of torch install the version that they were built for",
    "openslide": "only maps over slides need it, and the extra 'slides' installs it",
    "onnxruntime": "the extra onnx declares it, for jobs/export.py --onnx alone",
}
NOT_IMPORTED = {
    "cmaes": "optuna's CmaEsSampler imports it",
    "webdataset": "an example in docs/data.md reads our shards with it",
}


def normal(name: str) -> str:
    """A distribution's name as the registry compares it."""
    return re.sub("[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {normal(re.match("[A-Za-z0-9._-]+", each)[0]) for each in project["dependencies"]}


def imported() -> dict[str, set[str]]:
    """The files that import each third-party package, including imports within functions."""
    found: dict[str, set[str]] = {}
    for path in [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for package in {name.split(".")[0] for name in names} - OURS - sys.stdlib_module_names:
                found.setdefault(package, set()).add(str(path.relative_to(ROOT)))
    return found


installed = cache(packages_distributions)


def distributions(package: str) -> set[str]:
    """The distributions that install a package; if it is not installed, one of the same name."""
    return {normal(name) for name in installed().get(package, [package])}


def test_what_is_imported_is_declared():
    undeclared = {
        package: sorted(files)
        for package, files in imported().items()
        if not distributions(package) & declared()
    }
    assert undeclared.keys() == NOT_DECLARED.keys(), undeclared


def test_what_is_declared_is_imported():
    used = set().union(*map(distributions, imported()))
    assert declared() - used == NOT_IMPORTED.keys()
