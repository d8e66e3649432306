import pickle

import pytest
from pydantic import Field

from mhimdist.config.options import Options
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.errors import ConfigError
from mhimdist.search.options import Sweep


class Job(Options):
    """Do something."""

    name: str = Field("job", description="name of its folder")
    num_trials: int = Field(3, ge=1, description="number of trials")
    train: TrainConfig = Field(preset("c16", "abmil"), description="configuration of every trial")


def test_options_override_single_fields_of_nested_settings():
    job = Job.from_command_line(["--num-trials", "5", "--train.masking.high.start", "0.2"])
    assert job.num_trials == 5
    assert job.train == preset("c16", "abmil").override({"masking.high.start": 0.2})


def test_a_job_gives_defaults_without_repeating_what_they_mean(capsys):
    base = preset("c16", "abmil").override({"epochs": 7})
    job = Job.from_command_line(["--train.seed", "1"], name="mine", train=base)
    assert (job.name, job.num_trials) == ("mine", 3)
    assert job.train == base.override({"seed": 1})
    assert isinstance(job, Job)
    with pytest.raises(SystemExit):
        Job.from_command_line(["--help"], about="Do it well.", name="mine", train=base)
    text = " ".join(capsys.readouterr().out.split())
    for fragment in (
        "Do it well.",
        "name of its folder (default: mine)",
        "over the training bags (default: 7)",
    ):
        assert fragment in text


def test_another_model_leaves_the_old_ones_settings_behind():
    job = Job.from_command_line(["--train.model.hidden-dim=64", "--train.model.name", "transmil"])
    assert (job.train.model.name, job.train.model.hidden_dim) == ("transmil", 64)
    assert job.train.masking == preset("c16", "abmil").masking
    with pytest.raises(ConfigError, match=r"train\.model: .*|train\.model\.gated: unknown key"):
        Job.from_command_line(["--train.model.name", "transmil", "--train.model.gated"])


def test_the_environment_does_not_speak(monkeypatch):
    monkeypatch.setenv("NAME", "intruder")
    monkeypatch.setenv("NUM_TRIALS", "99")
    assert Job.from_command_line([]).model_dump() == Job().model_dump()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-trials", "0"], "num_trials: .* greater than or equal to 1, got '0'"),
        (["--train.masking.high.start", "3"], r"train\.masking: high\.start is a ratio in \[0, 1\], got 3"),
    ],
)
def test_a_wrong_value_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Job.from_command_line(arguments)


def test_an_unknown_option_ends_with_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        Job.from_command_line(["--nope"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --nope" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        Job.from_command_line(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "Do something." in text
    for fragment in ("--train.teacher.kind", "the full method", "(default: abmil)", "(default: 0.01)"):
        assert fragment in text


@pytest.mark.faults(52)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seeds", "["),
        ("--seeds", "{"),
        ("--seeds", '"'),
        ("--seeds", "[" * 5000),
        ("--train", "["),
        ("--train.loss", '{"a":' * 3000),
    ],
    ids=["list", "object", "quote", "lists", "group", "deep group"],
)
def test_a_value_that_is_no_value_is_an_error_in_a_line(option, value):
    with pytest.raises(ConfigError, match="the options cannot be read: "):
        Sweep.from_command_line([option, value])


def test_values_are_written_in_several_ways():
    made = Sweep.from_command_line(
        ["--seeds", "[4,5]", "--train", '{"epochs": 3, "seed": 9}', "--train.seed", "8", "--at-once", "none"]
    )
    assert (made.seeds, made.train.epochs, made.train.seed, made.at_once) == ((4, 5), 3, 8, None)
    assert Sweep.from_command_line(["--train.masking.high", "0.3"]).train.masking.high.start == 0.3
    assert Sweep.from_command_line(["--seeds", "1", "--seeds", "2,3"]).seeds == (1, 2, 3)
    assert not Sweep.from_command_line(["--no-between-folds"]).between_folds
    custom = ["--train.task.name", "custom", "--train.task.entry", "a:B", "--train.task.options", "x=1"]
    task = Sweep.from_command_line([*custom, "--train.task.options", "y=two"]).train.task
    assert task.options == {"x": 1.0, "y": "two"}


def test_what_is_missing_is_asked_for_by_its_option():
    class Needy(Options):
        """Need something."""

        data_folder: str = Field(description="where the data are")

    with pytest.raises(ConfigError, match="data_folder: expected a value, got none: give --data-folder"):
        Needy.from_command_line([])


def test_options_reach_other_processes_as_they_are():
    job = Sweep.from_command_line(["--seeds", "3"], about="A job's own text.", name="mine")
    assert type(job) is Sweep
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    assert (again.name, again.seeds, again.model_fields_set) == ("mine", (3,), job.model_fields_set)
