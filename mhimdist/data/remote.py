"""The location of a data set: a folder of this machine, or a URL that a file system library reads.

Only schemes that name a place are allowed. In `webdataset` and fsspec, schemes such as `pipe:` would run a
command, and chained URLs could hide one.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

import pyarrow.fs as pafs

from mhimdist.errors import ConfigError, RemoteDataError

Location = Path | str
"""A folder, or a URL such as `s3://bucket/shards`."""

ARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
FSSPEC_SCHEMES = ("https", "http", "az", "adl", "hf", "oss", "oci", "sftp", "webdav", "memory")

CHUNK_BYTES = 8 << 20
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(?!\\)")

_WITH_A_NAME = ("abfs", "abfss", "sftp")
"""Schemes whose URLs name a container or a user before `@`."""

_PROBED = ("abfs", "abfss", "gs", "gcs")
_PROBE_S = 15
_PROBING = (
    "import sys; from pyarrow import fs; files, root = fs.FileSystem.from_uri(sys.stdin.read()); "
    "files.get_file_info(root)"
)


def is_remote(location: Location) -> bool:
    """Whether a location is a URL; an existing folder of exactly this name is not.

    Raises:
        ConfigError: the scheme of the URL is not allowed, or the URL holds a password.
    """
    if isinstance(location, Path) or not (match := _URL.match(location)) or os.path.isdir(location):
        return False
    scheme = match[1].lower()
    if scheme == "file":
        return False
    if scheme not in ARROW_SCHEMES + FSSPEC_SCHEMES or "://" not in location or "::" in location:
        raise ConfigError(
            f"data {shown(location)!r}: expected a folder or a URL of "
            f"{', '.join(ARROW_SCHEMES + FSSPEC_SCHEMES)}"
        )
    user, at, _ = urlsplit(location).netloc.rpartition("@")
    if at and (":" in user or scheme not in _WITH_A_NAME):
        raise ConfigError(f"data {shown(location)!r}: credentials belong in the environment, not in a URL")
    return True


def absolute(location: Location) -> Location:
    """The location in a form that is valid in any working directory.

    Raises:
        ConfigError: as in `is_remote`.
    """
    if is_remote(location):
        return str(location).rstrip("/")
    return Path(str(location).removeprefix("file://")).expanduser().resolve()


class RemoteFolder:
    """A folder of files behind a URL, read through `pyarrow.fs` or fsspec.

    Credentials, endpoints and regions come from the environment variables that these libraries define
    (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...).

    Attributes:
        name: the URL without its query, for messages.
    """

    def __init__(self, url: str) -> None:
        """Connect only if a library must look up the region of a bucket.

        Raises:
            ConfigError: the scheme is not allowed, or its library is not installed.
            RemoteDataError: the server does not answer.
        """
        if not is_remote(url):
            raise ConfigError(f"data {url!r}: expected a URL")
        self.name = shown(url)
        self._scheme = url.split(":", 1)[0].lower()
        try:
            if self._scheme in _PROBED:
                _probe(url.rstrip("/"), self._scheme)
            if self._scheme in ARROW_SCHEMES:
                self._files, self._root = pafs.FileSystem.from_uri(url.rstrip("/"))
            else:
                self._files, self._root = _fsspec(url.rstrip("/"))
        except RemoteDataError:
            raise
        except ImportError as error:
            raise ConfigError(
                f"data {self.name!r}: the library for {self._scheme} is not installed: {error}"
            ) from None
        except Exception as error:  # the library behind each scheme has its own errors
            raise RemoteDataError(f"{self.name} cannot be reached: {_reason(error)}") from error

    def sizes(self) -> dict[str, int] | None:
        """The bytes of every file by name; None if the protocol cannot list a folder.

        Raises:
            RemoteDataError: the folder does not exist or cannot be listed.
        """
        if self._scheme in ("http", "https"):
            return None
        try:
            if self._scheme not in ARROW_SCHEMES:
                listed = self._files.ls(self._root, detail=True)
                return {each["name"].rsplit("/", 1)[-1]: each["size"] for each in listed}
            found = self._files.get_file_info(pafs.FileSelector(self._root))
        except Exception as error:
            raise RemoteDataError(f"{self.name} cannot be listed: {_reason(error)}") from error
        return {info.base_name: info.size for info in found if info.type == pafs.FileType.File}

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a small file; of a longer file, somewhat more than `max_bytes` from its start.

        Raises:
            FileNotFoundError: no file has this name.
            RemoteDataError: it cannot be read.
        """
        content = bytearray()
        for chunk in self.stream(name):
            content += chunk
            if len(content) > max_bytes:
                break
        return bytes(content)

    def stream(self, name: str) -> Iterator[bytes]:
        """The content of a file, chunk by chunk.

        Raises:
            FileNotFoundError, RemoteDataError: as in `read`.
        """
        try:
            with self._open(name) as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError as error:
            # fsspec also raises this if the server does not answer.
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError | None) or getattr(cause, "status", None) == 404:
                raise FileNotFoundError(f"{self.name}/{name}") from None
            raise RemoteDataError(f"{self.name}/{name} cannot be read: {_reason(cause)}") from error
        except Exception as error:
            raise RemoteDataError(f"{self.name}/{name} cannot be read: {_reason(error)}") from error

    def _open(self, name: str) -> BinaryIO:
        if self._scheme in ARROW_SCHEMES:
            return self._files.open_input_stream(f"{self._root}/{name}")
        # Not through pyarrow's fsspec handler, which requests every file twice.
        return self._files.open(self._path(name), "rb")

    def _path(self, name: str) -> str:
        if self._scheme not in ("http", "https"):
            return f"{self._root}/{name}"
        parts = urlsplit(self._root)  # the query, for example an access token, stays after the path
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def _fsspec(url: str) -> tuple[Any, str]:
    import fsspec

    options: dict[str, object] = {}
    if url.lower().startswith("http"):
        import aiohttp

        # aiohttp ends a request after 5 minutes, but a shard may take longer; only silence is limited here.
        # Blocks of 0 bytes stream a file once, which every server can, instead of requesting ranges.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        options = {"client_kwargs": {"timeout": timeout}, "block_size": 0}
    return fsspec.core.url_to_fs(url, **options)


def _probe(url: str, scheme: str) -> None:
    """Ask a store once, in another process.

    Without credentials, Azure's library aborts the process that asks; without a network, Google's tries for
    many minutes.

    Raises:
        RemoteDataError: it does not answer.
    """
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in url:
        url += f"{'&' if '?' in url else '?'}retry_limit_seconds={_PROBE_S}"
    try:
        # By stdin, because everybody on the machine sees a process's arguments.
        done = subprocess.run(
            [sys.executable, "-c", _PROBING], input=url, capture_output=True, text=True, timeout=4 * _PROBE_S
        )
    except subprocess.TimeoutExpired:
        raise RemoteDataError(f"{shown(url)} does not answer within {4 * _PROBE_S} s") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in said if line.startswith("what():")), said[-1] if said else "no reason"
        )
        raise RemoteDataError(
            f"{shown(url)} cannot be reached: {shown(reason)}; are there a network and credentials for it?"
        )


def shown(url: str) -> str:
    """A URL without its possible secrets, password and query; a container of Azure is none."""
    head = url.split("?", 1)[0]
    return re.sub(r"(\w*)(:?//)([^/\s]*)@", _without_password, head)


def _without_password(found: re.Match[str]) -> str:
    scheme, slashes, user = found.groups()
    is_name = scheme.lower() in _WITH_A_NAME and ":" not in user and "@" not in user
    return f"{scheme}{slashes}{user if is_name else '***'}@"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {shown(' '.join(str(error).split()))}"
