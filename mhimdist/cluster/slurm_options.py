"""The settings of a batch script for Slurm; each is checked, because it becomes part of a shell script."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from mhimdist.config.options import Options

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.@+-]*$"
_NAMES = r"^[A-Za-z0-9][A-Za-z0-9_.@+-]*(,[A-Za-z0-9][A-Za-z0-9_.@+-]*)*$"
_DIRECTIVE = re.compile(r"(?:--)?(?P<name>[a-z][a-z0-9-]*)(?:=(?P<value>[A-Za-z0-9_.,:@%+*/\[\]()|&!=-]+))?")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+/-]*")
# days-hours[:minutes[:seconds]], or hours:minutes:seconds, minutes:seconds, minutes; as Slurm takes them.
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?)|(?P<rest>\d+(?::\d+){0,2})"
)
_START_S = 60
"""Seconds that the start of Ray and of the command may take, before which a signal could save nothing."""

OWN_DIRECTIVES = frozenset(
    {
        *("account", "cpus-per-task", "gpus-per-node", "job-name", "mem", "nodes", "no-requeue", "ntasks"),
        *("ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "signal", "time"),
    }
)
"""Directives of sbatch that other options write, or that must not change."""


def _one_line(text: str) -> str:
    if any(not character.isprintable() for character in text):
        raise ValueError(f"expected printable characters on one line, got {text!r}")
    return text


def _absolute(path: Path) -> Path:
    text = _one_line(str(path.expanduser()))
    if not text.startswith("/"):
        raise ValueError(f"expected an absolute path, which is the same on all nodes, got {text!r}")
    if re.search("[:,]", text):
        raise ValueError(f"expected a path without colon and comma, by which lists are split, got {text!r}")
    return Path(text)


NodePath = Annotated[Path, AfterValidator(_absolute)]


class SlurmScript(Options):
    """Write a batch script that runs a command on Slurm: Ray on all nodes, the command on the first one.

    Raises:
        ConfigError: by `from_command_line`, if an option or a value is invalid; the message names it.
        pydantic.ValidationError: by the constructor, for the same.
    """

    FIRST: ClassVar[tuple[str, ...]] = (
        *("command", "nodes", "gpus", "cpus", "memory_gib", "time", "partition", "account"),
        *("home", "venv", "image", "out"),
    )
    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Job": ("command", "name", "time", "signal_s", "restarts", "output", "out"),
        "Nodes": ("nodes", "gpus", "gpu_type", "cpus", "memory_gib"),
        "Slurm": ("partition", "account", "qos", "extra"),
        "Environment": ("home", "venv", "image", "bind", "modules", "interface"),
    }

    command: str = Field(
        "python jobs/tune_c16.py --data /shared/shards/c16",
        description="the command, quoted as in a shell; nothing in it is expanded on the node",
    )
    name: str = Field("mhimdist", pattern=_NAME, description="name of the job")
    nodes: int = Field(2, ge=1, description="number of nodes")
    gpus: int = Field(4, ge=0, description="GPUs per node; 0: none")
    gpu_type: str = Field("", pattern=rf"^$|{_NAME}", description="type of the GPUs, such as a100; none: any")
    cpus: int = Field(32, ge=1, description="CPU cores per node")
    memory_gib: int = Field(
        128, ge=0, description="memory per node in GiB; 0: what the cluster gives if nobody asks"
    )
    time: str = Field(
        "24:00:00",
        description="time limit of each start, in a form of Slurm's: minutes, hours:minutes:seconds, "
        "days-hours, days-hours:minutes",
    )
    signal_s: int = Field(
        90, ge=30, le=3600, description="seconds before the time limit at which the command saves and stops"
    )
    restarts: int = Field(
        100, ge=0, description="most restarts after a time limit or a lost node; 0: none after a time limit"
    )
    partition: str = Field("", pattern=rf"^$|{_NAMES}", description="partition, or several with commas")
    account: str = Field("", pattern=rf"^$|{_NAME}", description="account that is charged")
    qos: str = Field("", pattern=rf"^$|{_NAME}", description="quality of service")
    extra: str = Field(
        "", description="further directives of sbatch, such as 'constraint=a100 exclude=n7,n8 exclusive'"
    )
    output: str = Field(
        "%x-%j.log",
        pattern=r"^[A-Za-z0-9_./%+-]+$",
        description="the log, to which every start appends; %x is the job's name and %j its number",
    )

    home: NodePath = Field(
        Path("/shared/mhimdist"),
        description="folder of runs and caches (MHIMDIST_HOME), under the same path on all nodes",
    )
    venv: NodePath | None = Field(
        Path("/shared/venv"),
        description="virtual environment with the package, under the same path on all nodes; none: the "
        "Python of the image, or of the environment that submits the job",
    )
    image: NodePath | None = Field(
        None, description="Apptainer image (.sif) in which everything runs, instead of venv"
    )
    bind: tuple[NodePath, ...] = Field(
        (Path("/shared/shards"),), description="folders that the image sees besides home; unused without it"
    )
    modules: str = Field("", description="modules to load first, such as 'cuda/13.0 apptainer'")
    interface: str = Field(
        "",
        pattern=r"^$|^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,14}$",
        description="network interface of Ray, such as ib0; none: the one of the address that Slurm uses",
    )
    out: Path | None = Field(None, description="file to write; none: print the script")

    @field_validator("out")
    @classmethod
    def _is_a_name(cls, value: Path | None) -> Path | None:
        if value is not None:
            _one_line(str(value))  # the script's first lines name it
        return value

    @field_validator("command")
    @classmethod
    def _is_a_command(cls, value: str) -> str:
        try:
            words = shlex.split(_one_line(value))
        except ValueError as error:
            raise ValueError(f"{error} in {value!r}: quote it as in a shell") from None
        if not words:
            raise ValueError("expected a command, such as 'python jobs/tune_c16.py'")
        return value

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        if not _TIME.fullmatch(value):
            raise ValueError(
                f"expected minutes, hours:minutes:seconds, days-hours or days-hours:minutes, got {value!r}"
            )
        return value

    @field_validator("extra")
    @classmethod
    def _are_directives(cls, value: str) -> str:
        for word in value.split():
            found = _DIRECTIVE.fullmatch(word)
            if found is None:
                raise ValueError(f"expected directives of sbatch such as constraint=a100, got {word!r}")
            if found["name"] in OWN_DIRECTIVES:
                raise ValueError(f"{found['name']} is written by another option, or must stay as it is")
        return value

    @field_validator("modules")
    @classmethod
    def _are_modules(cls, value: str) -> str:
        for word in value.split():
            if not _MODULE.fullmatch(word):
                raise ValueError(f"expected names of modules such as cuda/13.0, got {word!r}")
        return value

    @model_validator(mode="after")
    def _works(self) -> Self:
        if self.image is not None and self.venv is not None and "venv" in self.model_fields_set:
            raise ValueError("image and venv are both given: the image has its own Python, so give one")
        least = self.signal_s + _START_S
        if self.seconds <= least:
            raise ValueError(
                f"time {self.time} is {self.seconds} s, expected more than {least} s: the command is stopped "
                f"{self.signal_s} s before the end (signal-s), and needs time to start"
            )
        if self.gpu_type and not self.gpus:
            raise ValueError(f"gpu_type is {self.gpu_type}, but gpus is 0")
        return self

    @property
    def seconds(self) -> int:
        """The time limit in seconds."""
        found = _TIME.fullmatch(self.time)
        if found is None or found["rest"] is None:
            parts = [int((found and found[name]) or 0) for name in ("days", "hours", "minutes", "seconds")]
            days, hours, minutes, seconds = parts
            return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        numbers = [int(number) for number in found["rest"].split(":")]
        minutes_of = {1: (0, numbers[0], 0), 2: (0, *numbers), 3: tuple(numbers)}[len(numbers)]
        hours, minutes, seconds = minutes_of
        return (hours * 60 + minutes) * 60 + seconds

    @property
    def directives(self) -> list[str]:
        """The lines after `#SBATCH`, in the order of the script."""
        kind = f"{self.gpu_type}:" if self.gpu_type else ""
        given = {
            "job-name": self.name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.cpus,
            "gpus-per-node": f"{kind}{self.gpus}" if self.gpus else "",
            "mem": f"{self.memory_gib}G" if self.memory_gib else "",
            "time": self.time,
            "signal": f"B:TERM@{self.signal_s}",
            "output": self.output,
            "open-mode": "append",
        }
        more = [word if word.startswith("--") else f"--{word}" for word in self.extra.split()]
        return [f"--{name}={value}" for name, value in given.items() if value != ""] + ["--requeue"] + more
