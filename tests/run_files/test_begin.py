"""New files: as written they give the authors' settings, pass the schema, and hold every setting."""

from typing import get_args

import jsonschema
import pytest

from mhimdist.commands.options import Train
from mhimdist.commands.table import TABLE
from mhimdist.config.fields import file_settings_of
from mhimdist.config.presets import digits_preset, preset
from mhimdist.config.yaml_nodes import parse, typed
from mhimdist.errors import ConfigError
from mhimdist.run_files.begin import PAPER_FOLDS, init, names
from mhimdist.run_files.describe import schema
from mhimdist.run_files.kinds import KINDS, KindName
from mhimdist.run_files.read import read_job
from mhimdist.search.proposals import examine


def _given(text: str):
    return typed(parse(text.encode(), "run.yaml"))


@pytest.fixture(scope="module")
def of_all():
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.parametrize(("number", "name"), list(enumerate(names())))
def test_a_file_as_written_gives_the_authors_settings(number, name, tmp_path, of_all):
    kind = list(KINDS)[number % len(KINDS)]
    text = init(name, kind)
    (tmp_path / "run.yaml").write_text(text)
    job = read_job(kind, tmp_path / "run.yaml")
    dataset, _, model = name.removeprefix("digits-").partition("-")
    base = (digits_preset if name.startswith("digits-") else preset)(dataset, model)
    assert job.options.train == base
    assert job.options.train.digest() == base.digest()
    assert job.options.data == f"digits-{dataset}"
    if kind != "tune":
        expected = PAPER_FOLDS[dataset] | ({"seeds": (2021,), "run_folds": 1} if kind == "train" else {})
        assert {key: getattr(job.options, key) for key in expected} == expected
    given = _given(text)
    assert [error.message for error in of_all.iter_errors(given)] == []
    assert text.startswith("# yaml-language-server: $schema=mhimdist.schema.json\n")
    assert max(map(len, text.splitlines())) <= 100


def test_all_that_is_commented_out_is_a_default(tmp_path):
    """Every line with # right before a setting may be taken in, and changes nothing."""
    text = init("c16-transmil", "tune")
    taken = "\n".join(
        line
        if line.lstrip().startswith("# ")
        else line.replace("#", "", 1)
        if line.lstrip().startswith("#")
        else line
        for line in text.splitlines()
    )
    for name, content in (("plain", text), ("taken", taken)):
        (tmp_path / f"{name}.yaml").write_text(content)
    plain, everything = (read_job("tune", tmp_path / f"{name}.yaml").options for name in ("plain", "taken"))
    assert everything.model_copy(update={"home": plain.home}) == plain
    given = _given(taken)
    for each in file_settings_of(KINDS["tune"].options, {"train.model": "transmil"}):
        place = given
        for part in each.path:
            assert part in place, each.name
            place = place[part]
    assert not [
        line for line in taken.splitlines() if line.lstrip().startswith("#") and "# " not in line + " "
    ]


def test_each_kind_is_a_command_with_the_same_defaults():
    assert list(KINDS) == list(get_args(KindName))
    assert [name for name, entry in TABLE["Train"].items() if entry.kind] == list(KINDS)
    given = Train.defaults_for({})
    assert {name: given[name] for name in KINDS["train"].defaults} == {"seeds": (2021,), "run_folds": 1}


def test_ten_settings_are_live_besides_those_of_the_authors():
    for kind, made in KINDS.items():
        assert len(made.first) == 10
        given = _given(init("digits-c16-abmil", kind))
        for path in made.first:
            place = given
            for part in path.split("."):
                assert part in place, (kind, path)
                place = place[part]


def test_the_space_of_a_new_sweep_can_be_searched(tmp_path):
    (tmp_path / "sweep.yaml").write_text(init("tcga-transmil", "tune"))
    job = read_job("tune", tmp_path / "sweep.yaml", ["space.loss.alpha.uniform.1=0.75"])
    facts = examine(job.space, job.options.train)
    assert facts.feasible_share > 0.2
    assert facts.distributions["loss.alpha"].high == 0.75


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("c16-abmli", "tune", r"no settings 'c16-abmli' \(did you mean c16-abmil\?\); valid: c16-abmil, "),
        (
            "c16-abmil",
            "tuen",
            r"no kind of file 'tuen' \(did you mean tune\?\); valid: train, cross-validate, tune",
        ),
    ],
)
def test_an_unknown_name_is_refused(name, kind, message):
    with pytest.raises(ConfigError, match=message):
        init(name, kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: train\n", r"line 1: kind: this file is for mhimdist train, and not for mhimdist tune"),
        ("name: x\n", r"expected a section `space`, which says what the sweep searches, got none"),
        ("space: {keep_at_least: 0}\n", r"line 1: space\.keep_at_least: expected a share"),
        (
            "space:\n  loss.alpha:\n    uniform: [1, 0]\n",
            r"line 2: space\.loss\.alpha: expected \[low, high\]",
        ),
        ("space:\n  loss.alpha:\n    unifrm: [1, 0]\n", r"line 3: space\.loss\.alpha\.unifrm: unknown key"),
        ("space:\n", r"line 1: space: expected settings to search, got None"),
    ],
)
def test_a_sweep_without_its_space_is_refused(text, message, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_job("tune", tmp_path / "sweep.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "{kind: tune, train: {epoch: 3}}",
        "{kind: tune, train: {epochs: 0}}",
        "{kind: tune, train: {model: {name: abmil, num_heads: 3}}}",
        "{kind: tune, space: {loss.alpha: {uniform: [1]}}}",
        "{kind: tune, space: {loss.alpha: {uniform: [0, 1], fix: 1}}}",
        "{kind: tune, flods: 3}",
        "{kind: cross-validate, space: {}}",
        "{kind: tuen}",
        "{name: x}",
    ],
)
def test_the_schema_underlines_a_mistake(text, of_all):
    assert list(of_all.iter_errors(_given(text)))


@pytest.mark.parametrize(
    "text",
    [
        "{kind: tune, seeds: 5, train: {masking: {high: 0.2}, model: , task: {name: ordinal}}}",
        "{kind: tune, seeds: '1,2', gpus_per_run: none, min_workers: null, train: }",
        "{kind: tune, space: {model.name: {choice: {abmil: , dsmil: {loss.alpha: {fix: 0.1}}}}}}",
        "{kind: train, train: {model: {hidden_dim: 128}}}",
    ],
)
def test_the_schema_takes_what_the_reader_takes(text, of_all, tmp_path):
    assert [error.message for error in of_all.iter_errors(_given(text))] == []
