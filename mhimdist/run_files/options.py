"""The options of `mhimdist config`, which begins and describes files of settings."""

from typing import Annotated

from pydantic import Field

from mhimdist.config.fields import Positional
from mhimdist.config.options import Options
from mhimdist.run_files.kinds import KindName


class Init(Options):
    """Print a file of settings: every setting explained, the ones that people change first live.

    Raises:
        ConfigError: by `from_command_line`, if an option or a value is invalid.
    """

    settings: Annotated[str, Positional("NAME")] = Field(
        description="the authors' settings to begin with, such as c16-abmil or tcga-transmil; "
        "digits-c16-abmil sizes them for the embedded digits"
    )
    kind: KindName = Field("tune", description="command that will run the file")


class Schema(Options):
    """Print the JSON Schema of files of settings, by which an editor completes and checks them.

    Raises:
        ConfigError: by `from_command_line`, if an option or a value is invalid.
    """

    kind: KindName | None = Field(None, description="command that runs the files; none: all three")


class SettingsPage(Options):
    """Print every setting with its meaning, unit, range and default, as Markdown."""
