"""Errors that name the file, in place of what libraries raise over damaged content."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mhimdist.errors import DataError


@contextmanager
def named(what: str, *, why: bool = True) -> Iterator[None]:
    """Turn what a library raises into a `DataError`: `what` names the file, `why` adds the library's words.

    A lack of memory, or a disk or network that fails, says nothing about the content and stays as it is.

    Raises:
        DataError: the library raised an error over the content.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        # Libraries raise OSError over content, too: without a number, or for an offset before the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{what}: {said}" if why else what) from error
