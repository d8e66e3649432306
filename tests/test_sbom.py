"""`make sbom` lists what is installed."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest


@pytest.mark.slow
def test_the_list_of_packages_names_versions(tmp_path):
    command = [
        "-m",
        "cyclonedx_py",
        "environment",
        "--output-reproducible",
        "--of",
        "JSON",
        "-o",
        "sbom.json",
    ]
    subprocess.run([sys.executable, *command, sys.executable], cwd=tmp_path, check=True, capture_output=True)
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    versions = {each["name"].lower(): each["version"] for each in found["components"]}
    for name in ("torch", "ray", "optuna", "h5py", "safetensors"):
        assert versions[name] == version(name)
