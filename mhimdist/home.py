"""Where a user's data sets, runs and caches live."""

import os
from pathlib import Path


def home() -> Path:
    """The folder named by MHIMDIST_HOME, or `~/mhimdist`, as an absolute path; it need not exist yet.

    Everything a command makes without being told where lives below it: `data/` (data sets), `runs/`
    (checkpoints, histories, reports) and `cache/` (what can be made again). On a cluster it must be on
    storage that every node sees under the same path.
    """
    return Path(os.environ.get("MHIMDIST_HOME") or "~/mhimdist").expanduser().absolute()
