"""How every command of ours ends: quietly, or with one line on stderr and an exit status."""

import os
import sys
from collections.abc import Callable

from mhimdist.errors import MhimdistError, PreemptedError


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; an error that a user can cause becomes one line instead of a traceback.

    Exits with status 75 after a `PreemptedError`: the run is saved, and the same command goes on with it.
    Exits with status 1 after a `MhimdistError` or an `OSError` (a full disk, a missing permission), and
    with 130 after Ctrl-C. Any other exception is a fault of ours and keeps its traceback.
    """
    try:
        main()
    except PreemptedError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except (MhimdistError, OSError) as error:
        print("error:", " ".join(_message(error).split()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _message(error: Exception) -> str:
    """The text for a user: an `OSError` without its number, with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__
