import re
from dataclasses import replace

import numpy as np
import pytest

from mhimdist.statistics import metrics
from mhimdist.statistics.intervals import class_intervals
from mhimdist.training import model_card
from mhimdist.training.model_card import MODEL_CARD, Trained, card, escaped, write_card
from mhimdist.training.result import PAPER_WARNING, STRICT_NOTE, Result

SCORES = {"auc": 0.9, "accuracy": 0.8, "f1": 0.75, "precision": 0.7, "recall": None, "threshold": 0.4}
HOSTILE = "<script>alert(1)</script> | [a](http://b.c) `x`\n# heading **bold** =cmd()"


def _result(**more):
    generator = np.random.default_rng(0)
    labels = [0, 1] * 20
    raw = 0.3 * np.array(labels) + generator.uniform(0, 0.7, 40)
    told = {
        "protocol": "strict",
        "seed": 2021,
        "fold": 1,
        "config_digest": "c",
        "split_digest": "s",
        "data_digest": "d",
        "num_epochs": 3,
        "best_epoch": 1,
        "epoch_s": 1.0,
        "num_parameters": 1234,
        "validation": SCORES | {"auc": 0.85},
        "test": SCORES,
        "keys": [f"slide-{i}" for i in range(40)],
        "cases": [f"case-{i // 2}" for i in range(40)],
        "labels": labels,
        "probabilities": np.stack([1 - raw, raw], 1).tolist(),
    }
    return Result(**told | more)


def _state(**more):
    return {
        "config": {"model": {"name": "abmil", "hidden_dim": 16}, "teacher": {"kind": "init_momentum"}},
        "num_features": 1024,
        "classes": ["normal", "tumor"],
        "data_digest": "d",
        "features": {"encoder": "uni", "patch_size": 256, "level": None, "magnification": 20},
        "threshold": 0.4,
        "threshold_from": "Youden's J on the validation bags",
        "data": {
            "name": "slides",
            "synthetic": False,
            "digest": "d",
            "num_bags": 80,
            "num_cases": 40,
            "bags_per_class": {"normal": 50, "tumor": 30},
            "instances": {"lowest": 10, "median": 900.5, "highest": 3000},
        },
        "versions": {"mhimdist": "0.1.0", "torch": "2.13.0"},
    } | more


def _trained(state=None, **result):
    return Trained("fold-1-seed-2021", state or _state(), _result(**result), {"train": 30, "test": 40})


def _sections(text):
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_a_card_has_every_section_and_says_what_is_in_the_files():
    sections = _sections(card([_trained()], "run"))
    assert list(sections) == [
        *("Model", "Intended use", "Data and its limits", "Training", "Metrics", "Limits and ethics"),
        *("How to load", "Versions"),
    ]
    for name, words in (
        ("Model", ["MHIM-MIL on abmil", "N x 1024", "encoder of the features: uni", "patch size: 256"]),
        ("Model", ["level: not recorded", "positive class: tumor", "decision threshold: 0.4, from Youden"]),
        ("Intended use", ["not a medical device"]),
        ("Data and its limits", ["data set: slides", "digest: d", "bags: 80", "cases (patients): 40"]),
        (
            "Data and its limits",
            ["10 to 3000, median 900.5", "| tumor | 30 |", "bags that train: 30", "kept for the test: 40"],
        ),
        ("Training", [STRICT_NOTE, '"hidden_dim": 16']),
        ("Metrics", ["| fold-1-seed-2021 | test | 0.900 | 0.800 | 0.750 | 0.700 | undefined |"]),
        ("Versions", ["torch: 2.13.0"]),
    ):
        for word in words:
            assert word in sections[name], word


def test_the_intervals_are_those_of_the_tables():
    result = _result()
    labels_N, scores = np.array(result.labels), result.scores
    predicted_N = (scores.probabilities_NC[:, 1] >= SCORES["threshold"]).astype(int)
    expected = class_intervals([labels_N], [predicted_N], [scores.cases], 2)
    expected["auc"] = metrics.auc_interval([scores])
    found = model_card.metric_intervals([_trained()])
    names = ["auc", "accuracy", "f1", "precision", "recall"]
    assert found == {name: expected[name] for name in names}
    cells = " | ".join(f"{expected[name][0]:.3f} to {expected[name][1]:.3f}" for name in names)
    assert f"| 95 % interval | test | {cells} |" in card([_trained()], "run")


def test_an_ensemble_has_the_mean_and_its_intervals():
    other = _trained(test=SCORES | {"auc": 0.8, "accuracy": 0.6}, fold=2)
    text = card([_trained(), other], "run")
    assert "| mean of 2 | test | 0.850 | 0.700 | 0.750 | 0.700 | undefined |" in text
    assert "| 95 % interval of the mean | test | " in text


def test_an_interval_that_is_undefined_is_left_out():
    one_class = _trained(labels=[1] * 40)
    assert "auc" not in model_card.metric_intervals([one_class])
    assert "| 95 % interval | test | none | " in card([one_class], "run")


def test_the_papers_protocol_synthetic_bags_and_notes_are_warned_of():
    state = _state(data=_state()["data"] | {"synthetic": True})
    text = card(
        [_trained(state, protocol="paper", note="outside weights", missing_classes={"test": ["rare|"]})],
        "run",
    )
    assert f"**{PAPER_WARNING}**" in text
    assert STRICT_NOTE not in text
    assert "- synthetic: yes: generated, not computed from slides" in text
    assert "**Its data are synthetic: it says nothing about tissue.**" in text
    assert "Note: outside weights." in text
    assert r"no test bag is of rare\|; its figures omit them." in text


def test_a_network_that_was_not_tested_or_not_judged_says_so():
    untested = _trained(test={}, keys=(), cases=(), labels=(), probabilities=())
    assert "It was not tested" in card([untested], "trial")
    assert "interval" not in _sections(card([untested], "trial"))["Metrics"]
    stopped = replace(untested, result=None)
    assert "stopped before it was judged" in card([stopped], "trial")
    assert "The protocol is unknown" in card([stopped], "trial")


@pytest.mark.faults(51)
def test_foreign_texts_are_plain_text_in_markdown():
    assert escaped("a|b\n\u2028c\x00\u202e") == r"a\|b c"
    assert escaped("<b>&") == "&lt;b&gt;&amp;"
    assert len(escaped("x" * 500)) == 120
    data = _state()["data"] | {
        "name": HOSTILE,
        "description": HOSTILE,
        "bags_per_class": {HOSTILE: 3, "b": 4},
    }
    hostile = _state(classes=[HOSTILE, "b"], data=data, features={"encoder": HOSTILE})
    hostile["config"]["teacher"]["weights"] = "```\n# heading"
    plain, text = card([_trained()], "run"), card([_trained(hostile)], HOSTILE)
    assert "<script" not in text
    assert "](http" not in text
    headings = re.findall(r"^#+ .*$", text, flags=re.MULTILINE)
    assert headings[1:] == re.findall(r"^#+ .*$", plain, flags=re.MULTILINE)[1:]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert widths == {3, 8}  # two columns of classes, seven of metrics
    assert "````json\n" in text  # a longer fence than any in the configuration


def test_many_classes_and_many_networks_are_not_all_listed():
    names = [f"class {i}" for i in range(40)]
    many = _state(classes=names, data=_state()["data"] | {"bags_per_class": dict.fromkeys(names, 1)})
    text = card([_trained(many)] * 35, "run")
    assert "class 29, ..." in text
    assert "class 30" not in text
    assert "5 more networks are not listed" in text
    assert "ensemble of 35 networks" in text
    assert "positive class" not in text


def test_a_card_is_written_as_one_file(tmp_path):
    write_card(tmp_path, [_trained()], "run")
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_CARD]
    assert (tmp_path / MODEL_CARD).read_text() == card([_trained()], "run")
