"""Shards of targets are verified, repaired, appended to, merged and read again as those of classes are."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep import inspect as inspect_module
from data_prep import merge as merge_module
from data_prep.checks.faults import verify
from data_prep.checks.inspection import inspect
from data_prep.checks.repair import repair
from data_prep.merge import merge
from data_prep.shard import shard
from data_prep.tables.target_checks import summary
from mhimdist.data.manifest import Manifest
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, LabelError

HEADERS = {
    "survival": "os_months,os_status",
    "regression": "til",
    "multilabel": "tp53,kras",
    "ordinal": "label",
}
OPTIONS = {
    "survival": {},
    "regression": {"target_column": ("til",), "unit": "%"},
    "multilabel": {"target_column": ("tp53", "kras")},
    "ordinal": {},
}


def cells(task: str, i: int) -> str:
    if task == "survival":
        return f"{3.5 + 7 * i % 11},{i % 3 % 2}"
    if task == "regression":
        return str(i * i / 7)
    return f"{i % 2},{'' if i == 3 else i // 2 % 2}" if task == "multilabel" else f"G{1 + i % 3}"


def make(folder: Path, task: str, slides: range, **options: object) -> Path:
    """Shard slides into `folder/shards`, or append them to `options["out"]`."""
    (folder / "features").mkdir(parents=True)
    lines = [f"slide,case,{HEADERS[task]}"]
    for i in slides:
        np.save(folder / "features" / f"s{i}.npy", np.full((2 + i % 3, 4), i + 1, np.float32))
        lines.append(f"s{i},p{i // 2 if task != 'survival' else i},{cells(task, i)}")
    (folder / "labels.csv").write_text("\n".join(lines))
    out = folder / "shards"
    given = {"task": task, "out": out, "workers": 1} | OPTIONS[task] | options
    shard(folder / "features", folder / "labels.csv", **given)
    return given["out"]


def targets_of(shards: Path) -> dict[str, list[float]]:
    bags = BagShards(shards)
    values = bags.targets_NK if not bags.task.of_classes else bags.labels_N[:, None]
    return {
        slide: np.nan_to_num(row, nan=-1).tolist() for slide, row in zip(bags.slides, values, strict=True)
    }


@pytest.mark.parametrize("task", HEADERS)
def test_an_append_equals_one_run(task: str, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", task, range(30))
    grown = make(tmp_path / "first", task, range(18))
    few = Manifest.read(grown).info.classes
    make(tmp_path / "second", task, range(18, 30), out=grown, append=True)
    assert targets_of(grown) == targets_of(whole)
    one, other = Manifest.read(whole), Manifest.read(grown)
    assert other.info.task == one.info.task
    assert other.info.classes == one.info.classes
    if task == "regression":
        assert len(few) < 4 or few == one.info.classes
    strata = [
        dict(zip(m.rows["slide"].to_pylist(), m.rows["label"].to_pylist(), strict=True)) for m in (one, other)
    ]
    assert strata[0] == strata[1]


@pytest.mark.parametrize("task", HEADERS)
def test_merged_shards_have_the_strata_of_all(task: str, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", task, range(30))
    parts = [make(tmp_path / name, task, part) for name, part in (("a", range(18)), ("b", range(18, 30)))]
    merged = merge(parts, tmp_path / "merged")
    assert targets_of(tmp_path / "merged") == targets_of(whole)
    assert merged.info.classes == Manifest.read(whole).info.classes
    assert verify(tmp_path / "merged") == []


@pytest.mark.parametrize("task", HEADERS)
def test_damage_is_found_and_repaired(task: str, tmp_path: Path) -> None:
    shards = make(tmp_path, task, range(6))
    assert verify(shards) == []
    tar = shards / "shard-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(b'"slide"', b'"slida"', 1))
    (fault,) = [fault for fault in verify(shards) if fault.member]
    assert "crc32" in fault.what
    repaired, left = repair(shards, verify(shards), tmp_path / "features")
    assert (repaired, left) == (["shard-000000.tar"], [])
    assert tar.read_bytes() == whole


def test_the_json_of_a_bag_says_its_targets(tmp_path: Path) -> None:
    bags = BagShards(make(tmp_path, "multilabel", range(4)))
    said = bags.details(bags.slides.index("s3"))
    assert said["targets"] == {"tp53": 1, "kras": None}
    assert "label" not in said
    assert json.dumps(said)


@pytest.mark.parametrize("task", HEADERS)
def test_shards_are_sharded_again_without_a_table(task: str, tmp_path: Path) -> None:
    first = make(tmp_path, task, range(8))
    shard(first, None, tmp_path / "again", workers=1, dtype="float32")
    assert targets_of(tmp_path / "again") == targets_of(first)
    assert Manifest.read(tmp_path / "again").info.task == Manifest.read(first).info.task
    with pytest.raises(LabelError, match=r"--task .* needs a table of labels"):
        shard(first, None, tmp_path / "other", task="survival" if task != "survival" else "regression")


def test_another_task_is_neither_appended_nor_merged(tmp_path: Path) -> None:
    survival = make(tmp_path / "survival", "survival", range(6))
    regression = make(tmp_path / "regression", "regression", range(6, 12))
    old, new = "survival of 'os_months', 'os_status' in months", "regression of 'til' in %"
    message = f"expected labels of {old} as .*, got {new}"
    with pytest.raises(LabelError, match=message):
        make(tmp_path / "more", "regression", range(12, 15), out=survival, append=True)
    with pytest.raises(LabelError, match=message):
        merge([survival, regression], tmp_path / "merged")
    days = make(tmp_path / "days", "survival", range(20, 26), unit="days")
    with pytest.raises(LabelError, match=r"in months as .*, got survival .* in days"):
        merge([survival, days], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_grades_in_another_order_are_not_merged(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "ordinal", range(6))
    two = make(tmp_path / "two", "ordinal", range(6, 12), classes=("G3", "G2", "G1"))
    with pytest.raises(LabelError, match="expected grades in the order G1 < G2 < G3, got G3 < G2 < G1"):
        merge([one, two], tmp_path / "merged")


def test_a_slide_with_another_target_is_not_appended(tmp_path: Path) -> None:
    shards = make(tmp_path / "first", "regression", range(6))
    (tmp_path / "labels.csv").write_text("slide,case,til\ns5,p2,99\n")
    with pytest.raises(
        LabelError, match=r"'s5' is in the data set as 'til 3\.57.*' of case 'p2', but .* 'til 99'"
    ):
        shard(
            tmp_path / "first/features",
            tmp_path / "labels.csv",
            shards,
            append=True,
            target_column=("til",),
            skip_unmatched=True,
        )


def test_what_people_read_says_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = make(tmp_path, "survival", range(6))
    said = "survival: 2 of 6 with the event (os_status), time (os_months) 3.5 to 13.5 months"
    assert summary(Manifest.read(shards)) == said
    merge_module.main(
        [str(shards), str(make(tmp_path / "b", "survival", range(6, 9))), "--out", str(tmp_path / "both")]
    )
    assert "survival: 3 of 9 with the event" in capsys.readouterr().out
    about, strata = inspect_module.tables(inspect(shards, values=False))
    assert said in list(about.columns[1].cells)
    assert strata.columns[0].header == "stratum of targets"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("time_column", ("months",)), ("event_column", "dead"), ("target_column", ("a", "b"))),
        *(("unit", "months"), ("label_column", "label"), ("slides", Path("slides.csv"))),
    ],
)
def test_a_column_without_a_table_is_refused_by_its_name(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "a.npy", np.ones((3, 4), np.float32))
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(
        ConfigError, match=f"^{option} names what a table of labels has, and there is no --labels"
    ):
        shard(tmp_path / "features", None, tmp_path / "out", **{name: value})
