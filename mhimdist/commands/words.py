"""The words of a command that are no options: a file of settings, and overrides such as `train.epochs=50`."""

import importlib
from collections.abc import Sequence
from typing import Any

import click

from mhimdist.config.command_line import read
from mhimdist.config.fields import Setting
from mhimdist.config.nearest import did_you_mean
from mhimdist.config.train import load_config

FILES = "mhimdist.run_files.read"
"""The module that reads files of settings."""


def read_words(
    kind: str, words: Sequence[str], settings: Sequence[Setting]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a file, and those that override it.

    Args:
        kind: of the command: train, cross-validate or tune.
        words: at most one file, and overrides.
        settings: the settings of the command.

    Raises:
        click.UsageError: a word is neither, or there are two files.
        ConfigError: the file, or a setting of it, is wrong.
    """
    files = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if len(files) > 1:
        raise click.UsageError(f"expected one file of settings, got {', '.join(files)}")
    if not files:
        return {}, _tree(overrides, settings)
    given: dict[str, Any] = importlib.import_module(FILES).read_settings(kind, files[0], overrides)
    if isinstance(given.get("train"), dict):
        given["train"] = load_config(given["train"])
    return given, {}


def _tree(overrides: Sequence[str], settings: Sequence[Setting]) -> dict[str, Any]:
    """Nested settings from `a.b=c`."""
    known = {setting.name: setting for setting in settings}
    tree: dict[str, Any] = {}
    for word in overrides:
        path, _, text = word.partition("=")
        if (setting := known.get(path.replace("-", "_"))) is None:
            raise click.UsageError(f"no setting {path!r}{did_you_mean(path, known)}")
        several = setting.is_list or setting.is_mapping
        value = text if setting.is_flag else read(setting, (text,) if several else text)
        *parents, leaf = setting.path
        node = tree
        for parent in parents:
            inner = node.get(parent)
            node[parent] = node = inner if isinstance(inner, dict) else {}
        node[leaf] = value
    return tree
