"""Where runs write: a run's name stays below the folder of runs."""

import pytest

from mhimdist.errors import ConfigError
from mhimdist.search.options import Sweep


@pytest.mark.faults(40)
@pytest.mark.parametrize("name", [".", "..", "../x", "/etc", ""])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(name, tmp_path):
    (tmp_path / "sweep.json").write_text("{}")  # with it, --fresh would delete all of home
    with pytest.raises(ConfigError, match="name"):
        Sweep.from_command_line(["--home", str(tmp_path), "--name", name, "--fresh"])


def test_a_name_with_dots_is_a_name(tmp_path):
    assert Sweep(home=tmp_path, name="..2026-v1.2").folder == (tmp_path / "runs/..2026-v1.2").resolve()
