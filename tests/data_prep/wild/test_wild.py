"""Tables, folders, splits and checkpoints as people have them: the right data set, or the right refusal."""

from pathlib import Path

import pytest
from wild_cases import CASES
from wild_inputs import Case, try_case


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_tables_and_folders(case: Case) -> None:
    try_case(case)
