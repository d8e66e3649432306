"""Where a data set lives: a folder of this machine, or a place that a file system library reads.

Only schemes that name a place are taken. Of `webdataset`'s and fsspec's, `pipe:` and the like would run a
command, and chained URLs could hide one.
"""

import os
import re
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


def is_remote(location: Location) -> bool:
    """Whether a location is a URL; a folder that exists under this very name is none.

    Raises:
        ConfigError: it is a URL of a scheme that is not allowed, or one that holds a password.
    """
    if isinstance(location, Path) or not (match := _URL.match(location)) or os.path.isdir(location):
        return False
    scheme = match[1].lower()
    if scheme == "file":
        return False
    if scheme not in ARROW_SCHEMES + FSSPEC_SCHEMES or "://" not in location or "::" in location:
        raise ConfigError(
            f"data {_shown(location)!r}: expected a folder or a URL of "
            f"{', '.join(ARROW_SCHEMES + FSSPEC_SCHEMES)}"
        )
    if "@" in urlsplit(location).netloc and scheme not in ("abfs", "abfss", "sftp"):
        raise ConfigError(f"data {_shown(location)!r}: credentials belong in the environment, not in a URL")
    return True


def absolute(location: Location) -> Location:
    """The location in a form that means the same in any working directory."""
    if is_remote(location):
        return str(location).rstrip("/")
    return Path(str(location).removeprefix("file://")).expanduser().resolve()


class RemoteFolder:
    """A folder of files behind a URL, read through `pyarrow.fs` or fsspec.

    Credentials, endpoints and regions come from the environment as the libraries define it
    (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...).

    Attributes:
        name: the URL without its query, for messages.
    """

    def __init__(self, url: str) -> None:
        """Connect to nothing yet, except where a library must ask for a bucket's region.

        Raises:
            ConfigError: the scheme is not allowed, or its library is not installed.
            RemoteDataError: the place does not answer.
        """
        if not is_remote(url):
            raise ConfigError(f"data {url!r}: expected a URL")
        self.name = _shown(url)
        self._scheme = url.split(":", 1)[0].lower()
        try:
            if self._scheme in ARROW_SCHEMES:
                self._files, self._root = pafs.FileSystem.from_uri(url.rstrip("/"))
            else:
                self._files, self._root = _fsspec(url.rstrip("/"))
        except ImportError as error:
            raise ConfigError(
                f"data {self.name!r}: a library for {self._scheme} is missing: {error}"
            ) from None
        except Exception as error:  # of the library behind the scheme, which has errors of its own
            raise RemoteDataError(f"{self.name} cannot be reached: {_reason(error)}") from error

    def sizes(self) -> dict[str, int] | None:
        """Bytes of every file by name; None where the protocol cannot list a folder.

        Raises:
            RemoteDataError: there is no such folder, or it cannot be listed.
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
        """A small file's content; if it is longer than `max_bytes`, more of it than that, but not all.

        Raises:
            FileNotFoundError: there is none of this name.
            RemoteDataError: it cannot be read.
        """
        content = bytearray()
        for chunk in self.stream(name):
            content += chunk
            if len(content) > max_bytes:
                break
        return bytes(content)

    def stream(self, name: str) -> Iterator[bytes]:
        """A file's content, chunk by chunk.

        Raises:
            FileNotFoundError, RemoteDataError: as for `read`.
        """
        try:
            with self._open(name) as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError as error:
            # fsspec says so of a server that does not answer, too.
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError | None) or getattr(cause, "status", None) == 404:
                raise FileNotFoundError(f"{self.name}/{name}") from None
            raise RemoteDataError(f"{self.name}/{name} cannot be read: {_reason(cause)}") from error
        except Exception as error:
            raise RemoteDataError(f"{self.name}/{name} cannot be read: {_reason(error)}") from error

    def _open(self, name: str) -> BinaryIO:
        if self._scheme in ARROW_SCHEMES:
            return self._files.open_input_stream(f"{self._root}/{name}")
        # Not through pyarrow's handler of fsspec, which asks for every file twice.
        return self._files.open(self._path(name), "rb")

    def _path(self, name: str) -> str:
        if self._scheme not in ("http", "https"):
            return f"{self._root}/{name}"
        parts = urlsplit(self._root)  # a query, an access token say, stays behind the path
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def _fsspec(url: str) -> tuple[Any, str]:
    import fsspec

    options: dict[str, object] = {}
    if url.lower().startswith("http"):
        import aiohttp

        # A shard may take longer than the 5 minutes that aiohttp gives a request; silence may not. Blocks of
        # 0 bytes stream a file once, which every server can, instead of asking for ranges.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        options = {"client_kwargs": {"timeout": timeout}, "block_size": 0}
    return fsspec.core.url_to_fs(url, **options)


def _shown(url: str) -> str:
    """A URL without what may be secret: password and query."""
    head = url.split("?", 1)[0]
    return re.sub(r"//[^/@]*@", "//***@", head)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {_shown(' '.join(str(error).split()))}"
