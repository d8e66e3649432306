"""What the libraries that read files raise over damaged content, as errors that name the file."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mhimdist.errors import DataError


@contextmanager
def named(what: str, *, why: bool = True) -> Iterator[None]:
    """Turn whatever a library raises into `DataError`: `what`, which names the file, and `why`, what it said.

    Out of memory, and a disk or network that fails, say nothing of the content and stay what they are.

    Raises:
        DataError: in place of what a library raised over the content.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        # Libraries raise OSError over content, too: without a number, or for a place before the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{what}: {said}" if why else what) from error
