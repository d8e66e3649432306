"""`make sbom` lists what is installed."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_list_of_packages_names_versions(tmp_path):
    command = ["make", "--no-print-directory", "sbom", f"SBOM={tmp_path / 'sbom.json'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    versions = {each["name"].lower(): each["version"] for each in found["components"]}
    for name in ("torch", "ray", "optuna", "h5py", "safetensors"):
        assert versions[name] == version(name)
