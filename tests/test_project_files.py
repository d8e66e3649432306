"""The files by which a project can be joined and cited are valid and agree with it."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import mhimdist

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}


def test_the_citation_is_valid_and_says_whose_work_is_whose():
    """The schema is that of the Citation File Format 1.2.0 (CC-BY-4.0), without its descriptions."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    schema = json.loads((Path(__file__).parent / "citation_schema.json").read_text())
    jsonschema.validate(cited, schema)
    assert cited["version"] == mhimdist.__version__ == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert "independent implementation" in cited["message"]
    paper = cited["preferred-citation"]
    assert "Masked Hard Instance Mining" in paper["title"]
    assert paper["authors"][0]["family-names"] == "Tang"
    with pytest.raises(jsonschema.ValidationError, match="Additional properties are not allowed"):
        jsonschema.validate({**cited, "licence": "none"}, schema)


def test_the_changelog_has_this_version_and_the_sections_of_its_format():
    headings = re.findall(r"^## (.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1].split()[0] == mhimdist.__version__
    kinds = set(re.findall(r"^### (.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_that_are_named_exist(page: str):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[page])
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []
    named = re.findall(r"`((?:mhimdist|data_prep|tests|jobs)/[\w./]*)`", TEXTS[page])
    assert [name for name in named if not (ROOT / name).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z][a-z-]+)", TEXTS[page])) - targets - {"a"} == set()
    assert "@" not in re.sub(r"`[^`]*`", "", TEXTS[page])  # no address that nobody reads


def test_the_hooks_are_the_linters_of_make_lint_and_need_no_network():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    ours = {" ".join(hook["entry"].split()[:2]).removeprefix(".venv/bin/") for hook in hooks}
    theirs = {line.strip().removeprefix("@$(BIN)/").removesuffix(" --check") for line in lint.splitlines()}
    assert ours == theirs
