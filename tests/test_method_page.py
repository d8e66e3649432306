"""docs/method.md names settings that exist, and formulas that a browser can draw."""

import re

import pytest
from job_scripts import ROOT

import mhimdist as mh

PAGE = (ROOT / "docs" / "method.md").read_text()
BLOCKS = re.findall(r"^\$\$(.*?)\$\$$", PAGE, flags=re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", re.sub(r"^\$\$.*?\$\$$", "", PAGE, flags=re.M | re.S))
GROUPS = ("model", "masking", "teacher", "loss", "optimizer")


def settings_named() -> list[str]:
    """The settings on the page: dotted names of a group, and single words in columns of settings."""
    dotted = re.findall(rf"`((?:{'|'.join(GROUPS)})(?:\.\w+)+)`", PAGE)
    single = [name for name in re.findall(r"`(\w+)`", PAGE) if name in mh.TrainConfig.model_fields]
    return sorted({*dotted, *single})


@pytest.mark.parametrize("name", settings_named())
def test_every_setting_of_the_page_exists(name):
    configs = [mh.preset("c16", model) for model in ("abmil", "transmil", "dsmil")]
    for part in name.split("."):
        configs = [
            getattr(config, part) for config in configs if part in getattr(type(config), "model_fields", {})
        ]
    assert configs, name


def test_the_page_names_all_that_the_method_sets():
    fields = {
        f"{group}.{name}"
        for group in ("masking", "loss")
        for name in type(getattr(mh.preset("c16", "abmil"), group)).model_fields
    }
    assert fields <= set(settings_named())


@pytest.mark.parametrize("formula", [*BLOCKS, *INLINE])
def test_every_formula_becomes_mathml(formula):
    """The converter leaves what it does not know as it is, with its backslash."""
    drawn = pytest.importorskip("latex2mathml.converter").convert(formula)
    assert drawn.startswith("<math")
    assert "\\" not in drawn


def test_the_page_has_all_numbered_equations():
    said = set()
    for text in re.findall(r"equations? (\d+(?:(?:, | and )\d+)*)", PAGE):
        said |= {int(number) for number in re.findall(r"\d+", text)}
    assert said == set(range(1, 11))
    assert len(BLOCKS) >= 8
