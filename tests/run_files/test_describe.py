"""The page of settings is made of the settings, and lacks none."""

from pathlib import Path

import pytest

from mhimdist.config.fields import file_fields, file_settings_of
from mhimdist.config.option_groups import GROUPS
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.run_files.describe import settings_page
from mhimdist.search.options import Sweep

PAGE = Path(__file__).parent.parent.parent / "docs" / "settings.md"
OPTIONS = {
    each.path[-1].replace("_", "-")
    for each in (*file_settings_of(CrossValidation), *file_settings_of(Sweep))
    if "_" in each.path[-1]
}
"""Names as on a command line, which a file does not have."""


def test_the_page_is_current():
    assert PAGE.read_text() == settings_page(), "run mhimdist config settings > docs/settings.md"


@pytest.mark.parametrize("options", [CrossValidation, Sweep])
def test_every_setting_is_on_the_page_with_a_meaning(options):
    text = PAGE.read_text()
    for each in file_settings_of(options):
        assert f"| `{each.name}` |" in text
        assert each.meaning, each.name
        assert each.allowed != "any value", each.name
        assert not [name for name in OPTIONS if name in each.meaning], each.name


@pytest.mark.parametrize("options", [CrossValidation, Sweep])
def test_every_option_is_under_one_heading(options):
    under = [name for names in GROUPS.values() for name in names]
    assert len(set(under)) == len(under)
    assert set(file_fields(options)) <= set(under)
