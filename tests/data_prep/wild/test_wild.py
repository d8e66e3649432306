"""Tables, folders, splits and checkpoints as people have them: the right result, or the right refusal."""

from pathlib import Path

import pytest
from wild_cases import CASES
from wild_checkpoints import CHECKPOINTS, Checkpoint, try_checkpoint
from wild_inputs import Case, try_case
from wild_splits import DATA, SPLITS, SplitCase, try_split
from wild_targets import TARGETS, TargetCase, try_targets

from mhimdist.data.shards import BagShards


def name_of(case: Case | SplitCase | Checkpoint) -> str:
    return f"{case.kind}: {case.name}"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> BagShards:
    return DATA.make(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_tables_and_folders(case: Case) -> None:
    try_case(case)


@pytest.mark.parametrize("case", SPLITS, ids=name_of)
def test_splits(case: SplitCase, bags: BagShards) -> None:
    try_split(case, bags)


@pytest.mark.parametrize("case", CHECKPOINTS, ids=name_of)
def test_checkpoints(case: Checkpoint) -> None:
    try_checkpoint(case)


@pytest.mark.parametrize("case", TARGETS, ids=str)
def test_targets(case: TargetCase) -> None:
    try_targets(case)


def test_every_case_has_a_name_of_its_own() -> None:
    cases = (*CASES, *SPLITS, *CHECKPOINTS)
    assert len(cases) == len({name_of(case) for case in cases}) >= 120
    assert [name_of(case) for case in cases if len(str(case).splitlines()) != 1] == []
    assert len(TARGETS) == len(set(map(str, TARGETS))) >= 60
