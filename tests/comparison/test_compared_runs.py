import json
import re

import numpy as np
import pytest
from job_scripts import run_here
from written_runs import MASKED, PLAIN, write_cross_validation, write_prediction

import mhimdist as mh
from mhimdist.errors import ComparisonError, ConfigError
from mhimdist.report.comparison import PAPER_WARNING
from mhimdist.statistics.paired import holm

BOTH = {"MHIM (abmil)": (MASKED, 1.5), "abmil": (PLAIN, 0.5)}


@pytest.fixture
def run(tmp_path):
    return write_cross_validation(tmp_path / "cv", BOTH)


def test_a_cross_validation_is_compared_with_itself_without_masking(run):
    found = mh.compare(run, num_resamples=200)
    (pair,) = found.pairs
    assert (pair.first.name, pair.second.name) == ("MHIM (abmil)", "abmil")
    assert (found.num_slides, found.num_cases, found.warnings) == (60, 60, [])
    assert pair.settings["teacher.kind"] == ("init_momentum", "none")
    assert [outcome.p_adjusted for outcome in pair.outcomes] == [None] * 4
    (sentence,) = found.sentences
    assert re.fullmatch(
        r"On 60 test cases of digits \(3 folds x 2 seeds, strict protocol\), MHIM \(abmil\) reached AUC "
        r"\.\d{3} against \.\d{3} of abmil; difference \.\d{3}, 95 % interval \[\.\d{3}, \.\d{3}\], DeLong "
        r"p (= \.\d+|< \.001): evidence that MHIM \(abmil\) is better "
        r"\(corrected t over folds, p (= \.\d+|< \.001)\)\.",
        sentence,
    )
    table = json.loads((run / "table.json").read_text())["rows"]
    assert f"AUC {table[0]['auc']:.3f}".replace("0.", ".") in sentence


def test_networks_that_differ_by_chance_of_training_are_not_called_better_ones(tmp_path):
    """DeLong knows the patients only; the folds say whether training again would do the same."""
    run = write_cross_validation(tmp_path / "cv", BOTH, folds=2, seeds=(1,), num_slides=200)
    (sentence,) = mh.compare(run, num_resamples=100).sentences
    assert re.search(
        r"DeLong p < \.001: evidence that these networks of MHIM \(abmil\) are better, but not that training "
        r"again would make them so \(corrected t over folds, p = \.\d+\)\.$",
        sentence,
    )
    one = [next((run / "folds").glob(f"fold-1-seed-1-{number}*")) for number in (0, 1)]
    (sentence,) = mh.compare(*one, num_resamples=100).sentences
    assert sentence.endswith("are better; what training again would change is not known.")


def test_the_same_options_give_the_same_bytes(run):
    assert mh.compare(run, num_resamples=100).json() == mh.compare(run, num_resamples=100).json()
    first, other = (mh.compare(run, num_resamples=100, seed=seed).pairs[0] for seed in (0, 1))
    assert first.decisive == other.decisive
    assert first.outcomes[1].tested.low != other.outcomes[1].tested.low


def test_slides_of_a_case_are_counted_and_no_difference_is_said(tmp_path):
    same = {"a": (MASKED, 1.0), "b": (PLAIN, 1.0)}
    run = write_cross_validation(tmp_path / "cv", same, slides_a_case=2, seeds=(1,))
    (sentence,) = mh.compare(run, num_resamples=100).sentences
    assert sentence.startswith(
        "On 60 test slides of 30 cases of digits (3 folds x 1 seed, strict protocol), a"
    )
    assert sentence.endswith(": no evidence of a difference.")


def test_several_pairs_are_adjusted_by_holm(tmp_path, run):
    other = write_cross_validation(tmp_path / "other", {"abmil": (PLAIN, 0.9)})
    found = mh.compare(run, other, num_resamples=100)
    names = [(pair.first.name, pair.second.name) for pair in found.pairs]
    assert names == [
        ("MHIM (abmil)", "abmil of cv"),
        ("MHIM (abmil)", "abmil of other"),
        ("abmil of cv", "abmil of other"),
    ]
    for number in (0, 2, 3):
        outcomes = [pair.outcomes[number] for pair in found.pairs]
        assert [o.p_adjusted for o in outcomes] == holm([o.tested.p for o in outcomes])
    assert [pair.outcomes[1].p_adjusted for pair in found.pairs] == [None] * 3
    assert "(Holm's over 3 pairs)" in found.sentences[0]
    assert found.grids()[0].header[-1] == "p, Holm"
    one = mh.compare(run, other, against="abmil of cv", num_resamples=100)
    assert [pair.second.name for pair in one.pairs] == ["abmil of cv"] * 2
    with pytest.raises(ComparisonError, match="against: expected one of MHIM"):
        mh.compare(run, other, against="x")


def test_other_slides_need_common_and_the_comparison_says_how_many(tmp_path, run):
    more = write_cross_validation(tmp_path / "more", {"abmil": (PLAIN, 0.5)}, num_slides=80)
    with pytest.raises(ComparisonError, match=r"got 60 of MHIM .* and 80 of abmil"):
        mh.compare(f"{run}::MHIM (abmil)", more)
    found = mh.compare(f"{run}::MHIM (abmil)", more, common=True, num_resamples=100)
    assert found.num_slides == 60
    assert "Compared on the 60 test slides that all have in common, of up to 80." in found.warnings
    assert "60 test slides" in found.markdown()


def test_protocols_are_not_mixed(tmp_path, run):
    paper = write_cross_validation(tmp_path / "paper", BOTH, protocol="paper", seeds=(3,))
    with pytest.raises(ComparisonError, match="expected one protocol"):
        mh.compare(run, paper)
    with pytest.raises(ComparisonError, match="no runs of the strict protocol, but of paper"):
        mh.compare(paper, protocol="strict")
    found = mh.compare(paper, num_resamples=100)
    assert found.warnings == [PAPER_WARNING]
    assert "paper protocol" in found.sentences[0]
    assert "PAPER PROTOCOL" in found.markdown()
    assert json.loads(found.json())["warnings"] == [PAPER_WARNING]
    both = tmp_path / "both"
    for made in (run, paper):
        for fold in (made / "folds").iterdir():
            (both / "folds").mkdir(parents=True, exist_ok=True)
            fold.rename(both / "folds" / fold.name)
    assert mh.compare(both, num_resamples=100).entries[0].protocol == "strict"
    assert mh.compare(both, protocol="paper", num_resamples=100).entries[0].protocol == "paper"


def test_what_a_nested_search_chose_is_compared_with_what_was_not_tuned(tmp_path):
    tuned = write_cross_validation(tmp_path / "tuned", BOTH, protocol="nested", seeds=(3,))
    strict = write_cross_validation(tmp_path / "strict", BOTH, seeds=(3,))
    refit = write_cross_validation(tmp_path / "refit", BOTH, protocol="refit", seeds=(3,))
    found = mh.compare(f"{tuned}::abmil", f"{refit}::abmil", num_resamples=100)
    assert "(3 folds x 1 seed, nested and refit protocols)" in found.sentences[0]
    with pytest.raises(ComparisonError, match=r"expected one protocol, got nested .* strict"):
        mh.compare(tuned, strict)
    for fold in (tuned / "folds").iterdir():  # a folder of all protocols
        fold.rename(strict / "folds" / f"{fold.name}-nested")
    (strict / "table.json").unlink()
    assert {each.protocol for each in mh.compare(strict, num_resamples=100).entries} == {"nested"}


def test_folders_of_predictions_are_compared(tmp_path):
    generator = np.random.default_rng(0)
    labels = ["normal", "tumour"] * 40
    shared = generator.normal(size=80) + np.tile([-1, 1], 40)
    for name in ("a", "b"):
        scores = 1 / (1 + np.exp(-shared - generator.normal(size=80)))
        write_prediction(tmp_path / name, labels, scores.tolist())
    found = mh.compare(tmp_path / "a", tmp_path / "b", num_resamples=100)
    assert found.sentences[0].startswith(
        "On 80 test cases of other (predictions, strict protocol), a reached"
    )
    assert [outcome.tested is None for outcome in found.pairs[0].outcomes] == [False, False, True, False]
    assert found.warnings == ["a: w", "b: w"]
    assert "No setting differs, or none is known." in found.markdown()


def _models(config, *seeds):
    tree = config.recipe()
    about = {"folder": "gone", "data_digest": "ab" * 32}
    return [about | {"config": tree | {"seed": seed}} for seed in seeds]


def test_predictions_differ_in_the_settings_of_their_networks_and_in_how_they_vote(tmp_path):
    labels, scores = ["normal", "tumour"] * 10, [0.2, 0.8, 0.6, 0.4] * 5
    one = {"models": _models(MASKED, 1, 2), "how": "mean", "threshold": 0.4}
    other = {"models": _models(PLAIN, 1), "how": "mean", "threshold": 0.6}
    for name, about in (("one", one), ("other", other)):
        write_prediction(tmp_path / name, labels, scores, **about)
    settings = mh.compare(tmp_path / "one", tmp_path / "other", num_resamples=100).pairs[0].settings
    assert settings["networks"] == (2, 1)
    assert settings["threshold"] == (0.4, 0.6)
    assert settings["teacher.kind"] == (MASKED.teacher.kind, PLAIN.teacher.kind)
    assert not {"seed", "cases by", "trained on data"} & settings.keys()


def test_networks_of_an_ensemble_may_differ_and_old_predictions_name_their_folders(tmp_path):
    labels, scores = ["normal", "tumour"] * 10, [0.2, 0.8, 0.6, 0.4] * 5
    mixed = _models(MASKED, 1) + _models(MASKED.override({"epochs": 99}), 2)
    (tmp_path / "fold").mkdir()
    (tmp_path / "fold" / "config.json").write_text(json.dumps(MASKED.recipe()))
    write_prediction(tmp_path / "mixed", labels, scores, models=mixed)
    write_prediction(tmp_path / "old", labels, scores, models=[{"folder": str(tmp_path / "fold")}])
    settings = mh.compare(tmp_path / "mixed", tmp_path / "old", num_resamples=100).pairs[0].settings
    assert settings["epochs"] == ("differs between its networks", MASKED.epochs)
    assert "teacher.kind" not in settings


def test_one_configuration_and_wild_options_are_refused(run):
    with pytest.raises(ComparisonError, match="at least two configurations to compare, got abmil"):
        mh.compare(f"{run}::abmil")
    with pytest.raises(ConfigError, match=r"a level in \(0, 1\)"):
        mh.compare(run, level=95)


HOSTILE = "<script>alert(1)</script> | =cmd() [x](y)\n# `b` $z$"


def test_hostile_names_stay_text(tmp_path):
    shifts = {HOSTILE: (MASKED, 1.0), "*bold*": (PLAIN, 0.5)}
    run = write_cross_validation(tmp_path / "cv", shifts, dataset="<b>data</b>", seeds=(1,))
    text = mh.compare(run, num_resamples=100).markdown()
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert r"\[x\]\(y) \# \`b\` \$z\$" in text
    assert r"\*bold\*" in text
    assert "\n#" not in text[1:]
    for line in text.splitlines():
        if line.startswith("| ") and "test  " in line:
            assert len(re.findall(r"(?<!\\)\|", line)) == 7  # six columns
    body = json.loads(mh.compare(run, num_resamples=100).json())
    assert body["configurations"][0]["name"] == HOSTILE


def test_the_command_prints_and_writes(tmp_path, run):
    out = tmp_path / "new" / "out"
    done = run_here("compare.py", str(run), "--out", str(out), "--num-resamples", "100", home=tmp_path)
    assert done.returncode == 0, done.stderr
    body = json.loads((out / "comparison.json").read_text())
    assert body["pairs"][0]["sentence"] in done.stdout
    assert body["pairs"][0]["sentence"] == mh.compare(run).sentences[0]
    assert {test["test"] for test in body["pairs"][0]["tests"]} == {
        "DeLong",
        "bootstrap",
        "corrected t",
        "McNemar",
    }
    assert (body["slides"], body["cases"], len(body["configurations"][0]["networks"])) == (60, 60, 6)
    text = (out / "comparison.md").read_text()
    assert "| AUC: DeLong " in text
    assert "settings that differ" in text
    assert "teacher.kind" in text
    assert max(map(len, done.stdout.splitlines()[:8])) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere: expected an existing folder"),
        (["{run}", "{run}"], "expected each folder once"),
        (["{run}", "--level", "2"], "level"),
    ],
)
def test_bad_input_gives_one_clear_line(tmp_path, run, arguments, message):
    done = run_here("compare.py", *(each.format(run=run) for each in arguments), home=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
