"""What a setting or a class names as `module:name`, such as a ranking, a task or a page of yours."""

import importlib
from typing import Any

from mhimdist.errors import MhimdistError


def imported(entry: str, where: str, kind: str, error: type[MhimdistError]) -> Any:
    """The object that an entry names.

    Args:
        entry: the module and the object's name, with a colon between them.
        where: what names it, for the message.
        kind: what it must be, such as "Class", for the message.
        error: raised if it cannot be imported here.
    """
    module, _, name = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as why:
        raise error(
            f"{where}: expected module:{kind} that can be imported here, got {entry!r}: {why}; "
            "put the module's folder on PYTHONPATH, on every machine that trains"
        ) from None
