"""All slides of a case as one bag, against shards into which each case was written as one slide."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from case_shards import SLIDES_OF_CASE, case_shards
from task_bags import TaskBags, task_bags
from task_shards import shards_of

from mhimdist.config.train import Loading
from mhimdist.data.bags import PackedBags
from mhimdist.data.cases import CaseBags, as_one
from mhimdist.data.opening import open_bags
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.resident import resident
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import splits_of
from mhimdist.errors import DataError, LabelError, SplitError

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[CaseBags, BagShards]:
    """The bags of cases, and the shards of united slides."""
    slides, united = case_shards(tmp_path_factory.mktemp("cases"), coords=True)
    return CaseBags(BagShards(slides)), BagShards(united)


def assert_same(one: PackedBags, two: PackedBags) -> None:
    for name in ("features_TD", "offsets_B1", "labels_B", "ids_B"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert (one.keys, one.host_sizes) == (two.keys, two.host_sizes)
    assert one.features_TD.dtype == two.features_TD.dtype


def test_the_table_is_that_of_united_slides(both: tuple[CaseBags, BagShards]) -> None:
    cases, united = both
    for name in ("keys", "slides", "cases", "classes", "num_features", "dtype", "stored_dtypes", "name"):
        assert getattr(cases, name) == getattr(united, name), name
    for name in ("labels_N", "sizes_N", "ids_N"):
        assert np.array_equal(getattr(cases, name), getattr(united, name)), name
    assert (cases.bag_of, united.bag_of) == ("case", "slide")
    assert [len(each) for each in cases.members] == [SLIDES_OF_CASE[int(case[2:])] for case in cases.cases]
    assert cases.digest not in (united.digest, BagShards(cases.folder).digest)
    assert np.array_equal(cases.rows_of(cases.keys[::-1]), np.arange(len(cases))[::-1])
    with pytest.raises(DataError, match=r"has no case 'S1%2E0' .* its bags are cases here, not slides"):
        cases.rows_of(["S1%2E0"])
    with pytest.raises(DataError, match="has cases 0 to 11, got 12"):
        cases.load([12])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_batches_are_those_of_united_slides(both: tuple[CaseBags, BagShards], dtype: torch.dtype) -> None:
    cases, united = both
    for rows in ([], [3], [0, 5, 2, 5], range(len(cases))):
        rows_B = np.array(rows, np.int64)
        assert_same(cases.load(rows_B, dtype), united.load(rows_B, dtype))
        out = torch.empty((2000, cases.num_features), dtype=dtype)
        assert_same(cases.load(rows_B, dtype, out=out), united.load(rows_B, dtype))


@pytest.mark.parametrize("loading", [Loading(), Loading(read_ahead=False), Loading(reader="dali")])
@pytest.mark.parametrize("cache", ["none", "ram", "device"])
def test_every_reader_reads_cases(both: tuple[CaseBags, BagShards], loading: Loading, cache: str) -> None:
    if loading.reader == "dali":
        pytest.importorskip("nvidia.dali")
    cases, united = both
    steps = [[1], [], [4, 0, 7], [2], [5, 6]]
    held = resident(cases, cache)
    for dtype in (torch.float16, torch.float32):
        with read_ahead(held, steps, dtype=dtype, loading=loading) as batches:
            for batch, rows in zip(batches, steps, strict=True):
                assert_same(batch, united.load(rows, dtype))


def test_a_case_of_one_slide_is_not_copied(both: tuple[CaseBags, BagShards]) -> None:
    cases, _ = both
    for row, members in enumerate(cases.members):
        is_one = len(members) == 1
        assert cases.is_view([row], torch.float16) == is_one
        first, second = (cases.load([row], torch.float16).features_TD for _ in range(2))
        assert (first.data_ptr() == second.data_ptr()) == is_one


def test_what_instances_have_follows_slide_by_slide(both: tuple[CaseBags, BagShards]) -> None:
    cases, united = both
    slides = BagShards(cases.folder)
    for row, members in enumerate(cases.members):
        assert np.array_equal(cases.instance_labels(row), united.instance_labels(row))
        own = [slides.coords(int(slides.rows_of([member.replace(".", "%2E")])[0])) for member in members]
        assert np.array_equal(cases.coords(row), np.concatenate(own))
        assert cases.details(row).get("encoder") == united.details(row).get("encoder")
        assert bytes(cases.payload(row)) == bytes(united.payload(row))


def test_it_is_opened_by_name_and_goes_to_other_processes(both: tuple[CaseBags, BagShards]) -> None:
    cases, _ = both
    opened = open_bags(Path(cases.folder), bag_of="case")
    again = pickle.loads(pickle.dumps(opened))
    assert opened.digest == again.digest == cases.digest
    assert_same(again.load([1, 2]), cases.load([1, 2]))
    assert open_bags(Path(cases.folder)).bag_of == "slide"


def test_a_case_of_two_labels_is_refused_with_all_its_slides(tmp_path: Path) -> None:
    slides, _ = case_shards(tmp_path)
    bags = BagShards(slides)
    (row,) = bags.rows_of(["S1%2E1"]).tolist()
    bags.labels_N = bags.labels_N.copy()
    bags.labels_N[row] = 0
    expected = r"1 of 12 cases have several: case 'P\.1': 'S1\.0' is b, 'S1\.1' is a, 'S1\.2' is b\."
    with pytest.raises(LabelError, match=expected):
        CaseBags(bags)


def test_splits_are_those_of_united_slides(both: tuple[CaseBags, BagShards]) -> None:
    for options in ({"num_folds": 3}, {"test_share": 0.3}):
        drawn = [splits_of(bags, validation_share=0.3, seed=1, **options) for bags in both]
        assert drawn[0] == drawn[1]


def test_a_split_file_names_slides_or_cases(both: tuple[CaseBags, BagShards], tmp_path: Path) -> None:
    cases, _ = both
    sets = {case: ("train", "train", "val", "test")[i // 2 % 4] for i, case in enumerate(sorted(cases.cases))}
    by_slide, by_case = tmp_path / "slides.csv", tmp_path / "cases.csv"
    named = [
        f"{slide},{sets[case]}"
        for case, each in zip(cases.cases, cases.members, strict=True)
        for slide in each
    ]
    by_slide.write_text("\n".join(["slide,set", *named]))
    by_case.write_text("\n".join(["slide,set", *(f"{case},{name}" for case, name in sets.items())]))
    first, second = (
        splits_of(cases, validation_share=0.2, seed=0, split_file=path)[0] for path in (by_slide, by_case)
    )
    for name, members in first.sets.items():
        assert sorted(members) == sorted(second.sets[name])
        assert {cases.cases[row] for row in cases.rows_of(members)} == {
            case for case, own in sets.items() if own.startswith(name[:3])
        }
    by_slide.write_text("\n".join(["slide,set", *(line for line in named if not line.startswith("S5.2"))]))
    with pytest.raises(SplitError, match=r"case 'P\.5' is one bag .* leaves out 'S5\.2' of its 4 slides"):
        splits_of(cases, validation_share=0.2, seed=0, split_file=by_slide)


def test_several_bags_as_one(both: tuple[CaseBags, BagShards]) -> None:
    cases, united = both
    slides = BagShards(cases.folder)
    row = max(range(len(cases)), key=lambda row: len(cases.members[row]))
    rows = [slides.slides.index(slide) for slide in cases.members[row]]
    assert_same(as_one(slides.load(rows), united.keys[row]), united.load([row]))


@pytest.mark.parametrize("task", ["multilabel", "regression", "survival"])
def test_strata_and_folds_are_those_of_united_slides(tmp_path: Path, task: str) -> None:
    cases = task_bags(task, num_bags=60)
    # The higher the row, the more slides: quantiles over slides are not those over cases.
    of_case_S = np.repeat(np.arange(60), 1 + np.arange(60) // 12)
    slides = TaskBags(
        [cases.features[row] for row in of_case_S],
        cases.labels_N[of_case_S].tolist(),
        [cases.cases[row] for row in of_case_S],
        cases.task,
        cases.targets_NK[of_case_S],
    )
    cases.keys = cases.slides = cases.cases
    one, two = CaseBags(shards_of(slides, tmp_path / "slides")), shards_of(cases, tmp_path / "cases")
    assert (one.keys, one.classes) == (two.keys, two.classes)
    assert len(one.classes) >= 2
    assert np.array_equal(one.labels_N, two.labels_N)
    assert np.array_equal(one.targets_NK, two.targets_NK, equal_nan=True)
    first, second = (splits_of(bags, validation_share=0.2, seed=0, num_folds=3) for bags in (one, two))
    assert first == second
