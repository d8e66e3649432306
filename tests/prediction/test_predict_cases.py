"""Cases in predictions: by attention over slides, and as one bag by models that were trained so."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from case_shards import case_shards
from trained_folds import config_of, train_folds

import mhimdist as mh
from mhimdist.data.bags import PackedBags
from mhimdist.data.cases import CaseBags
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[BagShards, CaseBags]:
    slides = BagShards(case_shards(tmp_path_factory.mktemp("cases"), coords=True)[0])
    return slides, CaseBags(slides)


@pytest.fixture(scope="module")
def of_slides(both: tuple[BagShards, CaseBags], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides") / "cv"
    train_folds(folder, both[0], config_of(epochs=2))
    return folder


@pytest.fixture(scope="module")
def of_cases(both: tuple[BagShards, CaseBags], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("united") / "cv"
    train_folds(folder, both[1], config_of(epochs=2, instances_share=0.5))
    return folder


def rows(out: Path, name: str = "predictions") -> list[dict]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def networks_of(folder: Path) -> list:
    return [mh.load_student(fold) for fold in sorted((folder / "folds").iterdir())]


@torch.inference_mode()
def test_attention_weights_the_slides_of_a_case(both, of_slides, tmp_path) -> None:
    slides, _ = both
    out = mh.predict(of_slides, slides.folder, tmp_path / "out", cases="attention", threads=1)
    found = {row["case"]: row for row in rows(out, "cases")}
    of_slide = {row["slide"]: row for row in rows(out)}
    assert {row["how"] for row in found.values()} == {"attention"}
    for case, row in found.items():
        members = [r for r in range(len(slides)) if slides.cases[r] == case]
        expected = []
        for network in networks_of(of_slides):
            united = PackedBags.from_list([slides.load(members).features_TD])
            weights_N = network(united).scores_TH[:, 0].softmax(0)
            shares_S = torch.stack([part.sum() for part in weights_N.split(slides.sizes_N[members].tolist())])
            each = [network.predictions(network(slides.load([r])))[0] for r in members]
            expected.append(shares_S @ torch.stack(each))
        expected_C = torch.stack(expected).mean(0)
        assert row["probability_b"] == pytest.approx(float(expected_C[1]), abs=1e-6)
        assert sum(row[f"probability_{name}"] for name in "ab") == pytest.approx(1)
        if len(members) == 1:
            assert row["probability_b"] == of_slide[slides.slides[members[0]]]["probability_b"]
    document = json.loads((out / "prediction.json").read_text())
    assert document["how"] == "attention"
    assert set(document["metrics"]) == {"slides", "cases"}
    # Another rule is computed anew where it must be, and the earlier one is found again.
    attention = {case: row["probability_b"] for case, row in found.items()}
    mh.predict(of_slides, slides.folder, out, cases="union", threads=1)
    union = {row["case"]: row["probability_b"] for row in rows(out, "cases")}
    assert any(abs(union[case] - attention[case]) > 1e-6 for case in attention)
    mh.predict(of_slides, slides.folder, out, cases="attention", threads=1)
    assert {row["case"]: row["probability_b"] for row in rows(out, "cases")} == attention


def test_a_network_without_attention_is_refused(both, tmp_path) -> None:
    slides, _ = both
    train_folds(tmp_path / "cv", slides, config_of(epochs=1, model={"name": "mean_pooling", "hidden_dim": 4}))
    with pytest.raises(ConfigError, match=r"--cases attention: .* has no attention; take mean, max or union"):
        mh.predict(tmp_path / "cv", slides.folder, tmp_path / "out", cases="attention", threads=1)


@torch.inference_mode()
def test_models_of_cases_predict_cases(both, of_cases, tmp_path) -> None:
    slides, cases = both
    out = mh.predict(of_cases, slides.folder, tmp_path / "out", scores=True, threads=1)
    found = rows(out)
    assert sorted(row["case"] for row in found) == sorted(cases.cases)
    assert [row["slide"] for row in found] == [row["case"] for row in found]
    networks = networks_of(of_cases)
    for row in found:
        (number,) = cases.rows_of([cases.keys[cases.cases.index(row["case"])]]).tolist()
        bag = cases.load([number])
        each = [float(network.predictions(network(bag))[0, 1]) for network in networks]
        assert row["probability_b"] == pytest.approx(np.mean(each), abs=1e-6)
        attention = np.concatenate(
            [
                pq.read_table(out / "scores" / f"{slide.replace('.', '%2E')}.parquet")["attention"]
                for slide in cases.members[number]
            ]
        )
        expected_N = torch.stack([network(bag).scores_TH[:, 0].softmax(0) for network in networks]).mean(0)
        np.testing.assert_allclose(attention, expected_N, atol=1e-6)
    said = pq.read_schema(out / "scores" / "S1%2E0.parquet").metadata[b"mhimdist"]
    assert json.loads(said)["bag_of"] == "case"
    document = json.loads((out / "prediction.json").read_text())
    assert document["data"]["bag_of"] == "case"
    assert set(document["metrics"]) == {"cases"}
    assert not (out / "cases.parquet").exists()
    text = " ".join(document["warnings"])
    assert "12 of 12 cases have the names of cases that trained or selected a model" in text
    assert "trained on samples of each bag and evaluated on whole bags" in text


def test_the_other_kind_of_bag_comes_with_a_warning(both, of_cases, of_slides, tmp_path) -> None:
    slides, cases = both
    out = mh.predict(of_cases, slides.folder, tmp_path / "one", bag_of="slide", threads=1)
    assert len(rows(out)) == len(slides)
    text = " ".join(json.loads((out / "prediction.json").read_text())["warnings"])
    assert "trained on bags of a case each, and predict bags of a slide each here (--bag-of)" in text
    assert f"{len(slides)} of {len(slides)} slides have the names of slides that trained" in text
    out = mh.predict(of_slides, slides.folder, tmp_path / "two", bag_of="case", threads=1)
    assert len(rows(out)) == len(cases)
    with pytest.raises(ConfigError, match=r"expected models of the same bags \(--bag-of\)"):
        mh.predict([of_cases, of_slides], slides.folder, tmp_path / "three")
