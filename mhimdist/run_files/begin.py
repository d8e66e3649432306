"""Begins a file of a run, cross-validation or sweep: every setting, explained."""

from typing import Any

from mhimdist.config.commented import Commented, head
from mhimdist.config.nearest import did_you_mean
from mhimdist.config.presets import PAPER_FOLDS, PRESETS, digits_preset, preset
from mhimdist.errors import ConfigError
from mhimdist.run_files.kinds import SCHEMA_FILE, kind_of
from mhimdist.search.space_text import section, starting_space

_DIGITS = "digits-"


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
    made = kind_of(kind)
    if name not in names():
        raise ConfigError(f"no settings {name!r}{did_you_mean(name, names())}; valid: {', '.join(names())}")
    dataset, _, model = name.removeprefix(_DIGITS).partition("-")
    is_small = name.startswith(_DIGITS)
    train = (digits_preset if is_small else preset)(dataset, model)
    given: dict[str, Any] = {"name": f"{name}-{kind}", "data": f"digits-{dataset}", "train": train}
    if not made.has_space:
        given |= dict(PAPER_FOLDS[dataset]) | dict(made.defaults)
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
