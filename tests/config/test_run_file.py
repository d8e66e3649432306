"""Files of settings: values have the types of their settings, and every mistake is named with its line."""

from pathlib import Path

import pytest

from mhimdist.config.run_file import read
from mhimdist.config.train import ConfigWarning
from mhimdist.errors import ConfigError
from mhimdist.search.options import Sweep


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def settings(text, *overrides):
        Path("sweep.yaml").write_text(text)
        return read("sweep.yaml", overrides, Sweep)

    return settings


def test_a_file_gives_nested_settings_of_the_right_types(given):
    settings = given(
        "name: first\n"
        "seeds: [1, 2]\n"
        "storage: ~\n"
        "train:\n"
        "  epochs: 50\n"
        "  optimizer: {learning_rate: 5e-4}\n"
        "  masking:\n"
        "    high: 0.3\n"
        "  cuda_graphs: false\n"
        "  loading:\n"
    )
    assert settings == {
        "name": "first",
        "seeds": (1, 2),
        "storage": None,
        "train": {
            "epochs": 50,
            "optimizer": {"learning_rate": 0.0005},
            "masking": {"high": {"start": 0.3}},
            "cuda_graphs": "off",
        },
    }
    assert Sweep.model_validate(settings).train.optimizer.learning_rate == 0.0005


def test_words_of_yaml_1_1_stay_words_where_a_word_is_wanted(given):
    settings = given("name: no\nfeatures: none\ndata: 2024\ntrial_timeout_s: off\ngpus_per_run: none\n")
    assert settings == {
        "name": "no",
        "features": None,
        "data": "2024",
        "trial_timeout_s": "off",
        "gpus_per_run": None,
    }
    assert given("features: 'none'")["features"] == "none"
    assert given("train: {teacher: {kind: none}, loss: {alpha: 0}}")["train"]["teacher"] == {"kind": "none"}
    assert given("train: {tf32: yes}") == {"train": {"tf32": True}}


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "train:\n  model:\n"])
def test_what_is_not_given_has_its_default(given, text):
    assert Sweep.model_validate(given(text)) == Sweep()


def test_paths_of_the_home_folder_are_absolute(given):
    assert given("home: ~/x")["home"] == Path.home() / "x"


def test_a_custom_task_has_options_of_any_type(given):
    settings = given(
        "train: {task: {name: custom, entry: 'a:B', options: {a: 5e-4, b: no, c: true, d: '1'}}}"
    )
    assert settings["train"]["task"]["options"] == {"a": 0.0005, "b": "no", "c": True, "d": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  epoch: 3", r"line 2: train\.epoch: unknown key \(did you mean epochs\?\)"),
        (
            "train:\n  model:\n    gatd: true",
            r"line 3: train\.model\.gatd: unknown key \(did you mean gated\?\); valid here: .*, name$",
        ),
        (
            "train:\n  task:\n    survival_loss: cox",
            r"line 3: train\.task\.survival_loss: unknown key \(it belongs to task\.name survival\)$",
        ),
        ("name: x\nepochs: 5", r"line 2: epochs: unknown key here \(did you mean train\.epochs, each"),
        ("train.epochs: 5", r"line 1: train\.epochs: unknown key here \(did you mean train\.epochs, each"),
        ("num-trials: 5", r"line 1: num-trials: unknown key \(did you mean num_trials\?\)"),
        ("train:\n  epochs: 0", r"line 2: train\.epochs: .*greater than or equal to 1, got 0$"),
        ("train: {epochs: yes}", r"line 1: train\.epochs: .*valid integer.*, got yes$"),
        ("folds: true", r"line 1: folds: .*valid integer.*, got true$"),
        ("folds: 010", r"line 1: folds: expected a number in decimal digits without leading zeros, got 010"),
        ("seed: 0x10", r"line 1: seed: expected a number in decimal digits"),
        ("seed: 1:30", r"line 1: seed: .*valid integer.*, got 1:30$"),
        ("seed:", r"line 1: seed: expected a value, got nothing$"),
        ("seeds: [1, a]", r"line 1: seeds\.1: .*valid integer.*, got a$"),
        ("seeds: {a: 1}", r"line 1: seeds: expected a list of whole numbers, got settings below it$"),
        ("name: [1]", r"line 1: name: expected text, got a list$"),
        ("train:\n\n  optimizer: {learning_rate: .inf}", r"line 3: .*: expected a finite number, got \.inf$"),
        ("train: 5", r"line 1: train: expected settings below it, got 5$"),
        ("train:\n  model: {name: tranmil}", r"line 2: .*: no model 'tranmil' \(did you mean transmil\?\)"),
        (
            "train:\n  model:\n    name: transmil\n    hidden_dim: 7",
            r"line 2: train\.model: .*8 heads, got 7$",
        ),
        ("train: {task: {name: custom}}", r"line 1: train\.task\.entry: Field required$"),
        ("sampler: tep", r"line 1: sampler: Input should be 'tpe'.*, got tep$"),
        ("trial_timeout_s: never", r"trial_timeout_s: .*a valid number.*, or .*'auto' or 'off', got never$"),
        ("train: {masking: {high: a}}", r"line 1: train\.masking\.high.*valid number.*, got a$"),
        ("protocol: nested", r"^sweep\.yaml: protocol nested chooses by inner folds"),
        ("name: ../x", r"line 1: name: String should match"),
        ("- 1", r"line 1: expected settings, such as .*, got a list$"),
        ("folds: 1\nfolds: 2", r"line 2: folds comes twice"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_would_be_right(given, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        given(text)
    assert str(caught.value).startswith("sweep.yaml")


def test_all_mistakes_are_named_at_once(given):
    with pytest.raises(ConfigError) as caught:
        given("flods: 1\ntrain:\n  epoch: 2\n  seed:\n")
    said = str(caught.value).split("; ")
    assert said[0] == "sweep.yaml, line 1: flods: unknown key (did you mean folds?)"
    assert said[1] == "sweep.yaml, line 3: train.epoch: unknown key (did you mean epochs?)"
    assert said[2] == "sweep.yaml, line 4: train.seed: expected a value, got nothing"
    with pytest.raises(ConfigError, match=r"and 12 more$"):
        given("".join(f"x{i}: 1\n" for i in range(20)))


def test_a_secret_is_not_repeated_in_an_error(given):
    with pytest.raises(ConfigError) as caught:
        given("storage: [postgresql://me:hunter2@host/db]")
    assert "hunter2" not in str(caught.value)


def test_settings_without_effect_warn(given):
    with pytest.warns(
        ConfigWarning, match=r"sweep\.yaml: no effect: train\.loss\.temperature: loss\.alpha is 0"
    ):
        given("train: {loss: {alpha: 0, temperature: 0.2}}")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=7", ("train", "epochs"), 7),
        ("train.bags-per-step=4", ("train", "bags_per_step"), 4),
        ("train.optimizer.learning_rate=5e-4", ("train", "optimizer", "learning_rate"), 0.0005),
        ("seeds=1,2,3", ("seeds",), (1, 2, 3)),
        ("seeds=7", ("seeds",), (7,)),
        ("seeds=[4, 5]", ("seeds",), (4, 5)),
        ("seeds.1=9", ("seeds",), (1, 9)),
        ("seeds=", ("seeds",), ()),
        ("features=none", ("features",), None),
        ("data=s3://bucket/x?a=[1]#y: z", ("data",), "s3://bucket/x?a=[1]#y: z"),
        ("train.masking.high={start: 0.1, kind: cosine}", ("train", "masking", "high", "kind"), "cosine"),
        ("train.tf32=on", ("train", "tf32"), True),
    ],
)
def test_an_override_wins_and_is_read_as_on_a_command_line(given, override, path, value):
    found = given("seeds: [1, 2]\ntrain: {epochs: 50, model: {gated: true}}", override)
    for part in path:
        found = found[part]
    assert found == value


def test_another_model_drops_the_settings_of_the_old_one(given):
    text = "train: {model: {name: abmil, gated: true}}"
    settings = given(text, "train.model.num_heads=4", "train.model.name=transmil")
    assert settings["train"]["model"] == {"name": "transmil", "num_heads": 4}
    assert given(text, "train.model.name=abmil")["train"]["model"] == {"name": "abmil", "gated": True}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", r"override train\.epoch=5: train\.epoch: unknown key \(did you mean epochs\?\)"),
        ("train.epochs", r"expected a setting and its value, such as train\.epochs=50"),
        ("=5", "expected a setting and its value"),
        ("train..epochs=5", "expected a setting and its value"),
        ("train.epochs=0", r"override train\.epochs=0: train\.epochs: .*, got 0$"),
        ("seeds.5=1", r"override seeds\.5=1: seeds is a list of 2, numbered from 0; it has no 5"),
        ("name.x=1", r"override name\.x=1: name is one value, first \(line 1\), with nothing below it"),
        ("seeds=[1", r"override seeds=\[1.*not YAML"),
        (".".join("a" * 40) + "=1", "its name has too many parts"),
    ],
)
def test_a_wrong_override_is_named(given, override, message):
    with pytest.raises(ConfigError, match=message):
        given("name: first\nseeds: [1, 2]", override)


def test_two_overrides_of_one_setting_are_refused(given):
    with pytest.raises(ConfigError, match=r"override train\.epochs=3: train\.epochs=2 sets the same"):
        given("", "train.epochs=2", "train.epochs=3")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be read: No such file"):
        read(tmp_path / "missing.yaml", (), Sweep)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(tmp_path, (), Sweep)
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        read("a\0b", (), Sweep)
