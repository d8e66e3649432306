"""The database of a study: how it is opened, which sweep owns a study, and how a URL is shown."""

import re
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psutil
from optuna.trial import FrozenTrial
from sqlalchemy import ExceptionContext, event, make_url
from sqlalchemy.exc import ArgumentError

from mhimdist.errors import DiskFullError, SweepError
from mhimdist.search.mirror import Mirror

OWNER = "sweep"
"""A study's attribute: id and folder of the sweep that owns it."""

LOCK_TIMEOUT_S = 60
"""Seconds to wait for another process that locks a study's file, such as a dashboard that reads it."""

_SECRET = re.compile("pass|pwd|secret|token|key", re.IGNORECASE)
_NETWORK_FILESYSTEMS = re.compile("nfs|cifs|smb|lustre|gpfs|beegfs|ceph|gluster|^fuse", re.IGNORECASE)


class Owner(NamedTuple):
    """The sweep that a study belongs to.

    Attributes:
        id: made together with the sweep's folder.
        folder: path of that folder, for messages.
        is_alone: whether the database is a file in that folder, which holds no other sweep's study.
    """

    id: str
    folder: str
    is_alone: bool


def sqlite_url(path: Path) -> str:
    """The URL by which Optuna and optuna-dashboard open a study's file."""
    # Otherwise "?" would begin the URL's options, and "%41" mean "A".
    plain = str(path.resolve()).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{plain}"


def hidden(url: str) -> str:
    """A URL without its password, as people and files may see it."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return "(a URL that cannot be read)"
    secrets = {name: "hidden" for name in parsed.query if _SECRET.search(name)}
    return parsed.update_query_dict(secrets).render_as_string(hide_password=True)


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage at a URL.

    Raises:
        SweepError: no database answers there, or another process locks its file. Later work with the storage
            raises it, too, if the file becomes unusable.
        DiskFullError: the disk of the database's file is full.
    """
    # A sweep's connections rest for hours, and a server may close them meanwhile; a dashboard that reads a
    # file locks it.
    connect = {"timeout": LOCK_TIMEOUT_S} if url.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(
            url, engine_kwargs={"pool_pre_ping": True, "connect_args": connect}
        )
        event.listen(storage.engine, "handle_error", _explain)
        if (file := storage.engine.url.database) and connect and not network_filesystem(Path(file)):
            event.listen(storage.engine, "connect", _write_ahead)
            storage.engine.dispose()  # the connections that were opened before
        return storage
    except Exception as error:  # each database driver has its own errors
        if url.startswith("sqlite"):
            said = str(error.__cause__ or error) or type(error).__name__
            _refuse_file(hidden(url).removeprefix("sqlite:///"), said.splitlines()[0])
        cause = (
            error.__cause__ if isinstance(error.__cause__, ImportError) else None
        )  # names the missing driver
        said = f"{error} ({cause})" if cause else str(error) or type(error).__name__
        reason = " ".join(said.split()).replace(url, hidden(url))
        for secret in _secrets(url):
            reason = reason.replace(secret, "***")
        # Not `from error`: its text may hold the password.
        raise SweepError(f"storage {hidden(url)} cannot keep an Optuna study: {reason}") from None


def _write_ahead(connection: sqlite3.Connection, _: Any) -> None:
    """Have SQLite append what is committed to a log beside a study's file, without waiting for the disk.

    A commit then takes a hundredth of the time, and no program that reads the study makes the sweep wait.
    What was committed survives the end of every process. If the machine itself fails, the last commits can be
    lost, and the study is as it was a moment before. Where the file system has no such log, the file stays as
    it is.
    """
    if connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",):
        connection.execute("PRAGMA synchronous=NORMAL")


def _explain(context: ExceptionContext) -> None:
    """Name what a study's file suffers from: Optuna calls it all "invalid data in the commit".

    Raises:
        SweepError: another process locks the file, or the file cannot be written.
        DiskFullError: the file's disk is full.
    """
    if context.engine is not None and context.engine.dialect.name == "sqlite":
        _refuse_file(context.engine.url.database or "the study", str(context.original_exception))


def _refuse_file(file: str, reason: str) -> None:
    again = "start the sweep again to resume it"
    if "locked" in reason:
        raise SweepError(
            f"{file}: another process has kept the study locked for {LOCK_TIMEOUT_S} s; end that process "
            f"(`fuser {file}` shows it), then {again}"
        )
    if "disk is full" in reason:
        raise DiskFullError(f"disk full: {file} cannot be written; free space, then {again}")
    if re.search("malformed|not a database|corrupt|Could not decode", reason):
        raise SweepError(
            f"{file}: the study is damaged ({reason}); put a copy of it back, give this sweep another "
            "--name, or --fresh to delete it"
        )
    if "readonly" in reason or "disk I/O error" in reason:
        raise SweepError(f"{file}: the study cannot be written ({reason}); mend this, then {again}")


def _secrets(url: str) -> list[str]:
    try:
        parsed = make_url(url)
    except ArgumentError:
        return []
    values = [value for name, value in parsed.query.items() if _SECRET.search(name)]
    flat = [each for value in values for each in ([value] if isinstance(value, str) else value)]
    return [secret for secret in [parsed.password, *flat] if secret]


def create(
    url: str, name: str, owner: Owner | None, directions: list[optuna.study.StudyDirection]
) -> tuple[optuna.Study, Mirror]:
    """Begin a study, or open the one that exists; returns it with its storage.

    Args:
        url: of the database.
        name: of the study.
        owner: the sweep that must own the study; None leaves the owner open.
        directions: of the study's objectives.

    Raises:
        SweepError: no database answers, it is damaged, or another sweep owns the study of that name.
    """
    storage = Mirror(open_storage(url))
    sampler = optuna.samplers.RandomSampler()  # proposals come from `SweepStudy.propose`
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, sampler=sampler)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler)
        if owner is not None and not (owner.is_alone and OWNER not in study.user_attrs):
            _check_owner(study, owner.id, url)
    _require_readable(study, url)
    if owner is not None and OWNER not in study.user_attrs:
        study.set_user_attr(OWNER, {"id": owner.id, "folder": owner.folder})
    return study, storage


def _require_readable(study: optuna.Study, url: str) -> None:
    """Refuse a study whose rows contradict each other, as after damage that the database does not notice."""
    try:
        study.get_trials(deepcopy=False)
    except (LookupError, TypeError, ValueError, optuna.exceptions.StorageInternalError) as error:
        raise SweepError(
            f"storage {hidden(url)}: the study {study.study_name!r} is damaged ({type(error).__name__}: "
            f"{error}); put a copy of it back, or give this sweep another --name"
        ) from None


def _check_owner(study: optuna.Study, owner_id: str, url: str) -> None:
    found = study.user_attrs.get(OWNER)
    if found is None or found["id"] != owner_id:
        whose = f"belongs to the sweep in {found['folder']}" if found else "names no owner"
        raise SweepError(
            f"storage {hidden(url)} already has a study {study.study_name!r}, which {whose}: give this "
            "sweep another --name, or delete the study by `optuna delete-study` if nobody needs it"
        )


def delete(url: str, name: str, owner_id: str) -> None:
    """Delete a study, if it exists.

    Args:
        url: of the database.
        name: of the study.
        owner_id: id of the sweep that may delete it.

    Raises:
        SweepError: no database answers, or another sweep owns the study.
    """
    storage = open_storage(url)
    if name in optuna.get_all_study_names(storage):
        _check_owner(optuna.load_study(study_name=name, storage=storage), owner_id, url)
        optuna.delete_study(study_name=name, storage=storage)


def read(url: str, name: str) -> list[FrozenTrial]:
    """The trials of a study, by number.

    Raises:
        SweepError: no database answers.
        KeyError: the database has no study of that name.
    """
    return optuna.load_study(study_name=name, storage=open_storage(url)).trials


def network_filesystem(path: Path) -> str | None:
    """The type of the network file system that holds a path, such as nfs4; None on a local disk."""
    mounts = [each for each in psutil.disk_partitions(all=True) if path.is_relative_to(each.mountpoint)]
    kind = max(mounts, key=lambda each: len(each.mountpoint)).fstype if mounts else ""
    return kind if _NETWORK_FILESYSTEMS.search(kind) else None
