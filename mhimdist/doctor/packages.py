"""Python and the installed packages: what this release needs, and what it was tested with."""

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from mhimdist.config import extensions
from mhimdist.doctor.child import asked
from mhimdist.doctor.findings import Area, Finding, one_of
from mhimdist.doctor.options import Doctor

AREA = Area("python")
OLDEST = (3, 11)

TESTED = (Path(__file__).parent / "constraints.txt", Path(__file__).parents[2] / "constraints.txt")
"""The versions that this release passed its tests with: in a wheel, and in a checkout."""

_TRITON_TRIED = ("3.6", "3.7")

_SLOWING = "rfc3987-syntax"
"""Comes with Jupyter, by `jsonschema[format-nongpl]`; it parses a grammar when it is imported."""


def python(job: Doctor) -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST or sys.maxsize < 2**32:
        yield AREA.mend("interpreter", found, "install 64-bit Python 3.11 or later: `uv python install 3.11`")
    else:
        yield AREA.fine("interpreter", found)


def required(job: Doctor) -> Iterator[Finding]:
    """The packages that this release cannot do without."""
    try:
        needs = requirements()
    except metadata.PackageNotFoundError:
        yield AREA.warning(
            "packages",
            "mhimdist is not installed here, so its requirements are unknown",
            "install it: `python -m pip install --editable .` in the checkout",
        )
        return
    wrong = [text for need in needs if applies(need) and (text := fault_of(need))]
    if wrong:
        yield AREA.mend("packages", "; ".join(wrong), f"install what this release needs: `{_pip(needs)}`")
    else:
        names = sum(applies(need) for need in needs)
        yield AREA.fine("packages", f"all {names} required packages are in their ranges")
    yield from _tested(needs)


def _tested(needs: list[Requirement]) -> Iterator[Finding]:
    """Whether the required packages are those of the tests; later patch releases are."""
    tested = tested_versions()
    if not tested:
        yield AREA.fine("tested versions", "this installation does not say which versions it was tested with")
        return
    others = []
    for need in needs:
        has, was = installed(need.name), tested.get(normal(need.name))
        if applies(need) and has is not None and was is not None and not _as_tested(has, was):
            others.append(f"{need.name} {has} (tested: {was})")
    if others:
        (file,) = [path for path in TESTED if path.is_file()][:1]
        yield AREA.warning(
            "tested versions",
            one_of(others),
            f"install the tested ones: `python -m pip install --constraint {file} mhimdist`",
        )
    else:
        yield AREA.fine("tested versions", "the required packages are those of the tests")


def _as_tested(has: str, was: str) -> bool:
    try:
        mine, theirs = Version(has), Version(was)
    except InvalidVersion:
        return has == was
    return mine.release[:2] == theirs.release[:2] and mine >= theirs


def extras(job: Doctor) -> Iterator[Finding]:
    """The optional extras; one that is half installed is a fault."""
    try:
        needs = requirements()
        names = metadata.metadata("mhimdist").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    complete, absent = [], []
    for extra in sorted(set(names) - {"dev"}):
        wanted = [need for need in needs if need.marker is not None and _is_of(need.marker, extra)]
        faults = [text for need in wanted if (text := fault_of(need))]
        if not faults:
            complete.append(extra)
        elif all(installed(need.name) is None for need in wanted):
            absent.append(extra)
        else:
            yield AREA.warning(
                f"extra {extra}",
                "; ".join(faults),
                f"complete it: `python -m pip install 'mhimdist[{extra}]'`",
            )
    has = f"installed: {', '.join(complete) or 'none'}"
    more = f"; not installed: {', '.join(absent)} (`pip install 'mhimdist[NAME]'`)" if absent else ""
    yield AREA.fine("extras", has + more)


def triton(job: Doctor) -> Iterator[Finding]:
    """Whether torch and Triton are a pair: a CUDA build of torch names the one that it was built with."""
    has = installed("triton")
    try:
        distribution = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return  # the required packages say it
    pair = f"torch {distribution.version}, triton {has or 'not installed'}"
    for line in distribution.requires or []:
        try:
            need = Requirement(line)
        except InvalidRequirement:
            continue
        if normal(need.name) in ("triton", "pytorch-triton") and applies(need):
            if fault_of(need):
                told = f"{need.name}{need.specifier}"
                yield AREA.mend(
                    "torch and Triton",
                    f"{pair}; this torch was built for {told}",
                    f"install its pair: `python -m pip install '{told}'`",
                )
            else:
                yield AREA.fine("torch and Triton", f"{pair}: a pair")
            return
    if has is not None and not has.startswith(tuple(f"{tried}." for tried in _TRITON_TRIED)):
        yield AREA.warning(
            "torch and Triton",
            f"{pair}; tried with {' and '.join(_TRITON_TRIED)}",
            f"install a tried one: `python -m pip install 'triton=={_TRITON_TRIED[-1]}.*'`",
        )
    else:
        yield AREA.fine("torch and Triton", f"{pair}; this torch asks for none")


def slowing(job: Doctor) -> Iterator[Finding]:
    """A package that every process of Ray imports by way of jsonschema, and has no use for."""
    if installed(_SLOWING) is None:
        yield AREA.fine("start of Ray", f"no {_SLOWING}, which would slow it down")
    else:
        yield AREA.warning(
            "start of Ray",
            f"every process of Ray starts about 1 s later, because jsonschema imports {_SLOWING} there",
            f"uninstall it unless you check addresses (IRIs) with it: `python -m pip uninstall {_SLOWING}`",
        )


def added(job: Doctor) -> Iterator[Finding]:
    """What other packages add to mhimdist; a process imports it, because it can be anything."""
    groups = (extensions.MODELS, extensions.READERS, extensions.TRACKERS)
    if not any(extensions.names(group) for group in groups):
        return
    deadly = AREA.mend(
        "extensions",
        "a package that adds to mhimdist ends the process that imports it",
        "uninstall it: `python -m pip uninstall PACKAGE`; `pip list` names those installed",
    )
    answer = yield from asked(job, "added", silent=deadly)
    if answer is None:
        return
    for number, reason in enumerate(answer.pop("refused"), 1):
        yield AREA.warning(
            f"extension {number}", reason, "mend or uninstall its package: `python -m pip uninstall PACKAGE`"
        )
    told = [f"{kind} {', '.join(names)}" for kind, names in answer.items() if names]
    yield AREA.fine("extensions", "; ".join(told) or "none that can be used")


def requirements() -> list[Requirement]:
    """What this release requires, its extras included.

    Raises:
        PackageNotFoundError: mhimdist runs without having been installed.
    """
    return [Requirement(line) for line in metadata.requires("mhimdist") or []]


def applies(need: Requirement) -> bool:
    """Whether a requirement counts here, without any extra."""
    return need.marker is None or need.marker.evaluate({"extra": ""})


def _is_of(marker: Marker, extra: str) -> bool:
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def fault_of(need: Requirement) -> str | None:
    """What is wrong with the installed version of a package; None if nothing is."""
    has = installed(need.name)
    if has is None:
        return f"{need.name} is not installed"
    # A wheel's own build, such as 2.13.0+cpu, counts as its release.
    if need.specifier and not need.specifier.contains(has, prereleases=True):
        return f"{need.name} is {has}, expected {need.specifier}"
    return None


def installed(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def normal(name: str) -> str:
    """The name of a package as registries compare it."""
    return re.sub("[-_.]+", "-", name).lower()


def tested_versions() -> dict[str, str]:
    """The version of each package in the tests, by `normal` name; empty if they are not known here."""
    for path in TESTED:
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            pairs = (line.partition("==")[::2] for line in lines if "==" in line and line[0] != "#")
            return {normal(name): version.strip() for name, version in pairs}
    return {}


def _pip(needs: list[Requirement]) -> str:
    wanted = [f"'{need.name}{need.specifier}'" for need in needs if applies(need) and fault_of(need)]
    return f"python -m pip install {' '.join(wanted)}"
