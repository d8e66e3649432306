"""Extensions: what other installed packages add, found by their entry points and loaded when they are needed.

A package names what it adds in its pyproject.toml, for example

    [project.entry-points."mhimdist.models"]
    mean_attention = "my_package.settings:MeanAttention"

An extension that cannot be used is refused with its package, its entry point and the reason, and takes
nothing else with it.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from mhimdist.errors import ExtensionError

MODELS, READERS, TRACKERS = "mhimdist.models", "mhimdist.readers", "mhimdist.trackers"


@dataclass(frozen=True)
class Extensions:
    """The extensions of one group.

    Attributes:
        loaded: what their entry points name, by the entry points' names.
        refused: why the others cannot be used, by the same names; each reason names package and entry point.
        packages: the package of each loaded extension with its version, by the same names.
    """

    loaded: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    packages: dict[str, tuple[str, str]] = field(default_factory=dict)


def names(group: str) -> list[str]:
    """The names of the entry points of a group, loaded or not, in order."""
    return sorted({entry.name for entry in metadata.entry_points(group=group)})


def load(
    group: str,
    *,
    taken: Collection[str] = (),
    fault: Callable[[str, Any], str | None] = lambda name, found: None,
    only: str | None = None,
) -> Extensions:
    """Import what the entry points of a group name.

    Args:
        group: name of the group.
        taken: names that mhimdist has itself.
        fault: says of a name and what it stands for why it cannot be used; None if it can.
        only: the one name to import; None for all.
    """
    entries = list(metadata.entry_points(group=group))
    count = Counter(entry.name for entry in entries)
    found = Extensions()
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        if only is not None and entry.name != only:
            continue
        if entry.name in taken:
            reason: str | None = "mhimdist itself has this name, and a package must choose another"
        elif count[entry.name] > 1:
            rivals = [each for each in entries if each.name == entry.name and each is not entry]
            others = ", ".join(sorted(each.dist.name for each in rivals if each.dist is not None))
            reason = f"the package {others} has an entry point of the same name; uninstall one of them"
        else:
            reason = _import(entry, fault, found)
        if reason is not None:
            found.refused[entry.name] = f"{described(entry)} is refused: {reason}"
    return found


def _import(
    entry: metadata.EntryPoint, fault: Callable[[str, Any], str | None], found: Extensions
) -> str | None:
    """Import one; the reason why it cannot be used, None if it can."""
    try:
        value = entry.load()
    except (Exception, SystemExit) as error:  # whatever its module does
        return f"{type(error).__name__}: {error}"
    if (reason := fault(entry.name, value)) is not None:
        return reason
    found.loaded[entry.name] = value
    if entry.dist is not None:
        found.packages[entry.name] = (entry.dist.name, entry.dist.version)
    return None


def described(entry: metadata.EntryPoint) -> str:
    """An entry point in words: its package with the version, its name and what it stands for."""
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "unknown"
    return f"the extension {entry.name} = {entry.value!r} of the package {package} ({entry.group})"


def one(
    group: str, name: str, *, fault: Callable[[str, Any], str | None], taken: Collection[str] = ()
) -> Any:
    """Import the extension of this name.

    Args:
        group, fault, taken: as for `load`.
        name: name of its entry point.

    Raises:
        ExtensionError: there is none, or it cannot be used.
    """
    found = load(group, taken=taken, fault=fault, only=name)
    if name in found.loaded:
        return found.loaded[name]
    if name in found.refused:
        raise ExtensionError(found.refused[name])
    raise ExtensionError(f"no installed package has an entry point {name} in {group}")
