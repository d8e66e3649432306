from pathlib import Path

import numpy as np
import pytest

from data_prep.shard import main, shard
from data_prep.tables.cases import cases_of_barcodes, missing_cases, slides_of_barcodes
from data_prep.tables.labels import SlideLabel
from data_prep.writing.skipped import read_skipped
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, DataError, LabelError

TCGA = ("TCGA-A1-A0SB-01Z-00-DX1", "TCGA-A1-A0SB-01Z-00-DX2.0123", "TCGA-A1-A0SD-01Z-00-DX1")


def alone(*slides: str) -> list[SlideLabel]:
    return [SlideLabel(slide, slide, "x") for slide in slides]


def test_the_patient_is_in_a_barcode() -> None:
    assert [row.case for row in cases_of_barcodes(alone(*TCGA))] == ["TCGA-A1-A0SB"] * 2 + ["TCGA-A1-A0SD"]
    kept = [SlideLabel(TCGA[0], "TCGA-A1-A0SB", "x")]
    assert cases_of_barcodes(kept) == kept
    for slide in ("slide", "xTCGA-A1-A0SB", "TCGA-A1-A0SBX-01", "TCGA-A1-A0"):
        with pytest.raises(LabelError, match=f"slide '{slide}': expected a TCGA barcode"):
            cases_of_barcodes(alone(slide))
    with pytest.raises(
        LabelError, match="expected the case 'TCGA-A1-A0SB' as in its name, but the table says 'P7'"
    ):
        cases_of_barcodes([SlideLabel(TCGA[0], "P7", "x")])


def test_a_barcode_means_the_slides_that_begin_with_it() -> None:
    known = [*TCGA, "TCGA-A1-A0SC-01Z", "other"]
    assert slides_of_barcodes(["TCGA-A1-A0SB", "tcga-a1-a0sd-01z", "TCGA-A1-A0SB-01Z-00-DX2"], known) == {
        "TCGA-A1-A0SB": list(TCGA[:2]),
        "tcga-a1-a0sd-01z": [TCGA[2]],
        "TCGA-A1-A0SB-01Z-00-DX2": [TCGA[1]],
    }
    # cBioPortal leaves out the letter of a sample's vial.
    assert slides_of_barcodes(["TCGA-A1-A0SD-01"], known) == {"TCGA-A1-A0SD-01": [TCGA[2]]}
    themselves = [TCGA[0], f"{TCGA[0]}.svs", "other", "TCGA-A1-A0SD-0", "TCGA-ZZ-ZZZZ"]
    assert slides_of_barcodes(themselves, known) == {name: [name] for name in themselves}


def test_what_is_said_of_missing_cases() -> None:
    assert missing_cases([SlideLabel("a", "p", "x"), SlideLabel("b", "p", "x")]) is None
    assert missing_cases(alone("a")) is None
    assert "each of the 2 slides counts as its own patient" in str(missing_cases(alone("a", "b")))
    assert "each of the 2 slides counts" in str(missing_cases(alone(*TCGA[1:])))
    said = (
        "the names of 3 slides are of 2 TCGA patients, but the labels have no cases, so slides of one patient"
    )
    assert str(missing_cases(alone(*TCGA))).startswith(said)
    many = str(missing_cases(alone("a", "b"), [f"c{i}" for i in range(23)]))
    assert "(the table also has 'c0', 'c1'," in many
    assert "'c19' and 3 more), or add a column `case`, otherwise" in many


def test_the_warning_names_columns_that_could_be_the_case(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "features").mkdir()
    for slide in "ab":
        np.save(tmp_path / f"features/{slide}.npy", np.ones((3, 4), np.float32))
    table = tmp_path / "labels.csv"
    table.write_text("slide,Fallnummer,label,N° dossier,,age\na,7,x,1,,50\nb,7,y,2,,60\n")
    paths = ["--features", str(tmp_path / "features"), "--labels", str(table), "--out"]
    main([*paths, str(tmp_path / "alone")])
    assert (
        "if some are of the same patient, name their column with --case-column (the table also has "
        "'Fallnummer', 'N° dossier', 'age'), or add a column `case`"
    ) in capsys.readouterr().err
    main([*paths, str(tmp_path / "named"), "--case-column", "Fallnummer"])
    assert "no cases" not in capsys.readouterr().err
    assert BagShards(tmp_path / "named").cases == ("7", "7")


def test_the_command_warns_and_takes_the_case_from_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "features").mkdir()
    for slide in TCGA:
        np.save(tmp_path / f"features/{slide}.npy", np.ones((3, 4), np.float32))
    (tmp_path / "labels.csv").write_text("slide,label\n" + "".join(f"{slide},x\n" for slide in TCGA))
    paths = ["--features", str(tmp_path / "features"), "--labels", str(tmp_path / "labels.csv"), "--out"]
    main([*paths, str(tmp_path / "one")])
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: the names of 3 slides are of 2 TCGA patients, ")
    assert captured.err.endswith("; give --case-from tcga\n")
    assert f"{tmp_path / 'one'}: 3 bags of 3 cases, " in captured.out
    main([*paths, str(tmp_path / "two"), "--case-from", "tcga"])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"{tmp_path / 'two'}: 3 bags of 2 cases, " in captured.out
    assert sorted(BagShards(tmp_path / "two").cases) == ["TCGA-A1-A0SB", "TCGA-A1-A0SB", "TCGA-A1-A0SD"]
    with pytest.raises(ConfigError, match="case_from: expected 'tcga', got 'name'"):
        shard(tmp_path / "features", tmp_path / "labels.csv", tmp_path / "three", case_from="name")


def test_the_command_joins_labels_of_cases_by_barcode(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    for slide in TCGA:
        np.save(tmp_path / f"features/{slide}.npy", np.ones((3, 4), np.float32))
    (tmp_path / "labels.csv").write_text("Submitter ID;diagnosis\nTCGA-A1-A0SB;x\nTCGA-A1-A0SD;y\n")
    features, labels = tmp_path / "features", tmp_path / "labels.csv"
    with pytest.raises(LabelError, match="names cases and no slides"):
        shard(features, labels, tmp_path / "out")
    shard(features, labels, tmp_path / "out", case_from="tcga")
    bags = BagShards(tmp_path / "out")
    found = {(s, c, bags.classes[n]) for s, c, n in zip(bags.slides, bags.cases, bags.labels_N, strict=True)}
    assert found == {
        (TCGA[0], "TCGA-A1-A0SB", "x"),
        (TCGA[1], "TCGA-A1-A0SB", "x"),
        (TCGA[2], "TCGA-A1-A0SD", "y"),
    }
    labels.write_text("Submitter ID;diagnosis\nTCGA-A1-A0SB;NA\nTCGA-A1-A0SD;y\n")
    shard(features, labels, tmp_path / "some", case_from="tcga", skip_unmatched=True)
    assert [bag.slide for bag in read_skipped(tmp_path / "some")] == list(TCGA[:2])
    labels.write_text("slide,label\nTCGA-A1-A0SB,x\nTCGA-A1-A0SD,y\n")
    with pytest.raises(
        DataError, match="these look like cases, as they begin the names of features: give --slides"
    ):
        shard(features, labels, tmp_path / "more")
    long = [slide.split(".")[0] for slide in TCGA]
    labels.write_text("".join(f"{slide},{slide[-1]}\n" for slide in long))
    for slide in TCGA[::2]:
        (features / f"{slide}.npy").rename(features / f"{slide}.UUID.npy")
    with pytest.raises(DataError, match="they differ from slides only in what follows the first dot"):
        shard(features, labels, tmp_path / "more")
    shard(features, labels, tmp_path / "more", case_from="tcga")
    assert len(BagShards(tmp_path / "more").slides) == 3
