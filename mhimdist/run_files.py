"""Files that say a whole run, cross-validation or sweep: begun by `init`, read by `read_job`.

text = init("c16-abmil", "tune")           # a commented file to keep in git
job = read_job("tune", "sweep.yaml", ["train.epochs=50"])
run_sweep(job.options, job.space, data=ensure(job.options.data, job.options.home))
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mhimdist.config.commented import Commented, head
from mhimdist.config.file_schema import schema_of, schema_of_all
from mhimdist.config.option_groups import HIDDEN
from mhimdist.config.options import Options
from mhimdist.config.presets import PRESETS, digits_preset, preset
from mhimdist.config.reference import Part, reference
from mhimdist.config.run_file import SettingError, nearest, read
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.errors import ConfigError
from mhimdist.search.options import Sweep
from mhimdist.search.space_text import section, space_schema, starting_space
from mhimdist.search.written_space import WrittenSpace

Kind = Literal["train", "cross-validate", "tune"]
SCHEMA_FILE = "mhimdist.schema.json"
SPACE = "space"
_DIGITS = "digits-"
_TRAIN_FIRST = ("train.epochs", "train.optimizer.learning_rate", "train.bags_per_step")


@dataclass(frozen=True)
class _Kind:
    """A kind of file.

    Attributes:
        options: the class of its settings.
        noun: what it describes.
        first: the settings that people change first, by dotted path; they are live in a new file.
        defaults: defaults that differ from those of the class.
        has_space: whether it states a search space.
    """

    options: type[Options]
    noun: str
    first: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    has_space: bool = False


KINDS: dict[str, _Kind] = {
    "train": _Kind(
        CrossValidation,
        "one run: the first fold with one seed",
        ("name", "data", "protocol", "folds", "run_folds", "seeds", "gpus_per_run", *_TRAIN_FIRST),
        {"run_folds": 1, "seeds": (2021,)},
    ),
    "cross-validate": _Kind(
        CrossValidation,
        "a cross-validation: folds x seeds of one configuration",
        ("name", "data", "protocol", "folds", "seeds", "cpus_per_run", "gpus_per_run", *_TRAIN_FIRST),
    ),
    "tune": _Kind(
        Sweep,
        "a sweep: a search for a better configuration",
        ("name", "data", "protocol", "folds", "num_trials", "sampler", "gpus_per_run", *_TRAIN_FIRST),
        has_space=True,
    ),
}
PAPER_FOLDS: dict[str, dict[str, Any]] = {
    "c16": {"folds": 3, "seeds": (2021, 2022, 2023), "validation_share": 0.15},
    "tcga": {"folds": 4, "seeds": (2021,), "validation_share": 0.13, "paper_validation_share": 0.13},
}
"""How the authors split each data set; the shares are of the cases that do not test."""


@dataclass(frozen=True)
class Job:
    """What a file and its overrides ask for.

    Attributes:
        options: the options of the command, a `CrossValidation` or a `Sweep`.
        space: the search space; None if the kind has none.
    """

    options: Any
    space: WrittenSpace | None = None


def names() -> list[str]:
    """The names that `init` knows: the authors' settings, and the same sized for the embedded digits."""
    plain = [f"{dataset}-{model}" for dataset, model in PRESETS]
    return [*plain, *(f"{_DIGITS}{name}" for name in plain)]


def init(name: str, kind: str = "cross-validate") -> str:
    """A commented file: every setting with its meaning and range, the ones that people change first live.

    Args:
        name: of settings of the authors, such as `c16-abmil`; `digits-c16-abmil` sizes them for the embedded
            digits.
        kind: the command that will run it: `train`, `cross-validate` or `tune`.

    Raises:
        ConfigError: there is no such name or kind.

    Example:
        >>> print(init("c16-abmil", "tune").splitlines()[0])
        # yaml-language-server: $schema=mhimdist.schema.json
    """
    made = _kind(kind)
    if name not in names():
        raise ConfigError(f"no settings {name!r}{nearest(name, names())}; valid: {', '.join(names())}")
    dataset, _, model = name.removeprefix(_DIGITS).partition("-")
    is_small = name.startswith(_DIGITS)
    train = (digits_preset if is_small else preset)(dataset, model)
    given: dict[str, Any] = {"name": f"{name}-{kind}", "data": f"digits-{dataset}", "train": train}
    if not made.has_space:
        given |= PAPER_FOLDS[dataset] | dict(made.defaults)
    options = made.options(**given)
    file = f"{'sweep' if kind == 'tune' else 'run'}.yaml"
    whose = "sized for the embedded digits" if is_small else "put your own folder of shards at `data`"
    lines = head(
        f"{made.noun[0].upper()}{made.noun[1:]}. The authors' settings of {train.title} for "
        f"{dataset.upper()}; {whose}. A line with # right before the setting states its default: remove the "
        "# to change it.",
        [
            f"mhimdist {kind} {file}".ljust(56) + "runs it",
            f"mhimdist {kind} {file} train.epochs=50".ljust(56) + "changes a setting for once",
            f"mhimdist config schema > {SCHEMA_FILE}".ljust(56) + "lets your editor complete and check it",
        ],
        SCHEMA_FILE,
    )
    sections = {"Training": section(starting_space(train))} if made.has_space else {}
    body = Commented(options, first=made.first).lines(sections)
    return "\n".join([*lines, "", f"kind: {kind}", *body]) + "\n"


def read_job(kind: str, path: Path | str, overrides: Sequence[str] = ()) -> Job:
    """The options, and for a sweep the space, that a file and overrides ask for.

    Args:
        kind: the command that will run it.
        path: of the file.
        overrides: texts such as `train.epochs=50`.

    Raises:
        ConfigError: the file cannot be read, is of another kind, or a setting of it is wrong; the message
            names file, line and setting.
    """
    settings = read_settings(kind, path, overrides)
    space = settings.pop(SPACE, None)
    if _kind(kind).has_space and space is None:
        raise ConfigError(f"{path}: expected a section `space`, which says what the sweep searches, got none")
    return Job(_kind(kind).options(**settings), None if space is None else WrittenSpace(space))


def read_settings(kind: str, path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that a file and overrides give, nested; for a sweep with the plain data of `space`.

    Args:
        kind, path, overrides: as in `read_job`.

    Raises:
        ConfigError: as in `read_job`.
    """
    made = _kind(kind)

    def is_ours(given: Any) -> None:
        if given != kind:
            raise SettingError((), f"this file is for mhimdist {given}, and not for mhimdist {kind}")

    sections: dict[str, Any] = {"kind": is_ours} | ({SPACE: WrittenSpace} if made.has_space else {})
    settings = read(path, overrides, made.options, sections=sections, hidden=HIDDEN)
    settings.pop("kind", None)
    settings = {**made.defaults, **settings}
    if "model" in made.options.model_fields:  # the command line's way to choose a preset
        train = made.options.model_validate({k: v for k, v in settings.items() if k != SPACE}).train  # type: ignore[attr-defined]
        settings["model"] = train.model.name
    return settings


def schema(kind: str | None = None) -> dict[str, Any]:
    """The JSON Schema of files, as `mhimdist config schema` writes it.

    Args:
        kind: the command that runs them; None for all, which then choose by their key `kind`.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind is None:
        return schema_of_all({each: schema(each) for each in KINDS})
    made = _kind(kind)
    return schema_of(made.options, kind, {SPACE: space_schema()} if made.has_space else {})


def schema_text(kind: str | None = None) -> str:
    """`schema` as JSON."""
    return json.dumps(schema(kind), indent=1) + "\n"


def settings_page() -> str:
    """The page docs/settings.md: every setting with its meaning, unit, range and default."""
    return reference(
        [
            Part(
                "Cross-validations and single runs",
                CrossValidation,
                "`mhimdist cross-validate`, `mhimdist train`",
            ),
            Part("Sweeps", Sweep, "`mhimdist tune`"),
        ]
    )


def _kind(kind: str) -> _Kind:
    if kind not in KINDS:
        raise ConfigError(
            f"no kind of file {kind!r}{nearest(kind, KINDS)}; valid: {', '.join(get_args(Kind))}"
        )
    return KINDS[kind]


if __name__ == "__main__":
    print(settings_page(), end="")
