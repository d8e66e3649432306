"""The options of the commands that submit to a cluster, or start one."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from mhimdist.config.fields import Metavar, Positional
from mhimdist.config.options import Options

START_TIMEOUT_S = 120.0


class Submit(Options):
    """Submit a job script with its working directory to a Ray cluster, within Ray's limit.

    Raises:
        ConfigError: by `from_command_line`, if an option or a value is invalid.
    """

    TAKES_REST: ClassVar[bool] = True

    job: Annotated[str, Positional("JOB")] = Field(
        description="the script, relative to the working directory, such as jobs/tune_c16.py; "
        "mhimdist submit also takes a command of its own, such as tune"
    )
    rest: Annotated[list[str], Positional("OPTION")] = Field([], description="the job's own options")
    address: Annotated[str, Metavar("URL")] = Field(
        "http://127.0.0.1:8265", description="URL of the cluster's dashboard, as `ray dashboard` shows it"
    )
    working_dir: Annotated[Path, Metavar("DIR")] = Field(
        Path(), description="directory to send with the job (default: this one)"
    )
    insecure: bool = Field(
        False, description="submit even if RAY_AUTH_MODE leaves the cluster open; give it to the job as well"
    )
    check: bool = Field(False, description="show the upload's size, and submit nothing")


class LocalCluster(Options):
    """Run a command with a private Ray cluster on this machine, and end the cluster with it.

    The command finds the cluster by RAY_ADDRESS (ray.init) and RAY_API_SERVER_ADDRESS (ray job submit). The
    exit status is the command's.
    """

    TAKES_REST: ClassVar[bool] = True

    command_line: Annotated[list[str], Positional("COMMAND")] = Field(
        min_length=1, description="command to run and its arguments, after --"
    )
    num_cpus: int | None = Field(None, ge=1, description="CPUs that Ray may hand out (default: all it finds)")
    start_timeout: Annotated[float, Metavar("SECONDS")] = Field(
        START_TIMEOUT_S, gt=0, description="seconds that the cluster may take to get ready"
    )
