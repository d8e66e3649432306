"""Reads a file of a run, cross-validation or sweep, with overrides such as `train.epochs=50`.

job = read_job("tune", "sweep.yaml", ["train.epochs=50"])
run_sweep(job.options, job.space, data=ensure(job.options.data, job.options.home))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhimdist.config.run_file import SettingError, read
from mhimdist.errors import ConfigError
from mhimdist.run_files.kinds import SPACE, kind_of
from mhimdist.search.written_space import WrittenSpace


@dataclass(frozen=True)
class Job:
    """What a file and its overrides ask for.

    Attributes:
        options: the options of the command, a `CrossValidation` or a `Sweep`.
        space: the search space; None if the kind has none.
    """

    options: Any
    space: WrittenSpace | None = None


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
    if kind_of(kind).has_space and space is None:
        raise ConfigError(f"{path}: expected a section `space`, which says what the sweep searches, got none")
    return Job(kind_of(kind).options(**settings), None if space is None else WrittenSpace(space))


def read_settings(kind: str, path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that a file and overrides give, nested; for a sweep with the plain data of `space`.

    Args:
        kind, path, overrides: as in `read_job`.

    Raises:
        ConfigError: as in `read_job`.
    """
    made = kind_of(kind)

    def is_ours(given: Any) -> None:
        if given != kind:
            raise SettingError((), f"this file is for mhimdist {given}, and not for mhimdist {kind}")

    sections: dict[str, Any] = {"kind": is_ours} | ({SPACE: WrittenSpace} if made.has_space else {})
    settings = read(path, overrides, made.options, sections=sections)
    settings.pop("kind", None)
    settings = {**made.defaults, **settings}
    if "model" in made.options.model_fields:  # the command line's way to choose a preset
        train = made.options.model_validate({k: v for k, v in settings.items() if k != SPACE}).train  # type: ignore[attr-defined]
        settings["model"] = train.model.name
    return settings
