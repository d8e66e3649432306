"""The options of the doctor, as a command has them."""

import os
from pathlib import Path

from pydantic import Field

from mhimdist.config.options import Options
from mhimdist.files import home


class Doctor(Options):
    """Look at this machine, its cluster and your data; exits with status 1 if something must be mended.

    Attributes:
        as_json: `--json`; the constructor takes it by that name.
    """

    home: Path = Field(
        default_factory=home,
        description="folder of data/, runs/ and cache/ (default: MHIMDIST_HOME, otherwise ~/mhimdist)",
    )
    data: str | None = Field(
        None,
        description="name of an embedded data set, or path or URL of a folder of shards, of which every byte "
        "is then read; none: no data are looked at",
    )
    address: str | None = Field(
        default_factory=lambda: os.environ.get("RAY_ADDRESS") or None,
        description="host and port of a cluster's head, such as 10.0.0.1:6379 (default: RAY_ADDRESS); none: "
        "commands use this machine alone",
    )
    cpus_per_run: float = Field(1.0, gt=0, description="CPU cores that a run shall take")
    gpus_per_run: float | None = Field(
        None, ge=0, description="share of a GPU that a run shall take; none: a quarter if there are GPUs"
    )
    timeout_s: float = Field(
        60.0, gt=0, description="most seconds for a check; data are read for as long as it takes"
    )
    insecure: bool = Field(
        False, description="accept Ray without its token, in a network that nobody else reaches"
    )
    as_json: bool = Field(False, alias="json", description="print JSON in place of the table")
