"""Describes the files of runs: a JSON Schema for editors, and the page of all settings."""

import json
from typing import Any

from mhimdist.config.file_schema import schema_of, schema_of_all
from mhimdist.config.reference import Part, reference
from mhimdist.cross_validation.options import CrossValidation
from mhimdist.run_files.kinds import KINDS, SPACE, kind_of
from mhimdist.search.options import Sweep
from mhimdist.search.space_text import space_schema


def schema(kind: str | None = None) -> dict[str, Any]:
    """The JSON Schema of files, as `mhimdist config schema` writes it.

    Args:
        kind: the command that runs them; None for all, which then choose by their key `kind`.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind is None:
        return schema_of_all({each: schema(each) for each in KINDS})
    made = kind_of(kind)
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
