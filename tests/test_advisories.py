"""The pinned packages against a list of known vulnerabilities that comes as a package.

The list is as old as it says: it finds packages that no version makes safe, and pins that are older than it.
docs/security.md says how to ask for newer ones where you have a network.
"""

import importlib.util
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def advisories() -> dict:
    """The list; the test is skipped where it is not installed."""
    found = importlib.util.find_spec("safety_db")
    if found is None:
        pytest.skip("no list of vulnerabilities is installed: pip install safety-db")
    # The package cannot be imported: it looks for its own file in the folder of whoever imports it.
    return json.loads((Path(found.submodule_search_locations[0]) / "insecure_full.json").read_text())


def pinned(text: str) -> dict[str, str]:
    """The version of each package of a file of constraints."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = {}
    for requirement in map(Requirement, lines):
        (pin,) = requirement.specifier
        found[canonicalize_name(requirement.name)] = pin.version
    return found


def vulnerable(pins: dict[str, str], known: dict) -> list[str]:
    """A line for each advisory that concerns a pin."""
    return [
        f"{name}=={pins[canonicalize_name(name)]}: {each['id']} {each['cve']} {each['advisory']}"
        for name, found in known.items()
        if canonicalize_name(name) in pins
        for each in found
        if any(SpecifierSet(spec).contains(pins[canonicalize_name(name)]) for spec in each["specs"])
    ]


def test_no_pinned_version_is_known_to_be_vulnerable(record_property):
    known = advisories()
    written = datetime.fromtimestamp(known["$meta"]["timestamp"], UTC).date()
    record_property("advisories of", str(written))
    assert written.isoformat() in (ROOT / "docs" / "security.md").read_text()
    pins = pinned((ROOT / "constraints.txt").read_text())
    assert len(pins) > 150
    assert vulnerable(pins, known) == []


def test_a_version_that_is_known_to_be_vulnerable_is_found():
    found = vulnerable({"pillow": "8.0.0", "numpy": "2.0.0", "pyyaml": "5.3"}, advisories())
    names = {each.partition("==")[0] for each in found}
    assert names == {"pillow", "pyyaml"}
    assert any("CVE-2020-14343" in each for each in found)
