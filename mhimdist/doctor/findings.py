"""What the doctor finds: the classes, and the JSON that `--json` prints."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from mhimdist.doctor.options import Doctor

Status = Literal["fine", "warning", "mend"]


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    area: str = Field(description="the part of the machine, such as home")
    subject: str = Field(description="what was looked at, such as free space; unique within its area")
    status: Status = Field(
        description="fine; warning: training works, but worse than it could; mend: training fails, loses "
        "files or is open to strangers"
    )
    found: str = Field(description="what was found")
    mend: str | None = Field(None, description="one sentence with the command that mends it; null if fine")


class Diagnosis(BaseModel):
    """All findings; the object that `mhimdist doctor --json` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(1, description="changes if a reader of this object has to")
    mhimdist: str = Field(description="version of mhimdist")
    host: str = Field(description="name of the machine")
    checked_at: str = Field(description="time of the start, ISO 8601 in UTC")
    seconds: float = Field(description="how long it took")
    findings: list[Finding] = Field(description="in the order in which they were made")

    @computed_field(description="the worst status of all findings")  # type: ignore[prop-decorator]
    @property
    def status(self) -> Status:
        """The worst status of all findings."""
        found = {finding.status for finding in self.findings}
        return "mend" if "mend" in found else "warning" if "warning" in found else "fine"

    def count(self, status: Status) -> int:
        """How many findings have this status."""
        return sum(finding.status == status for finding in self.findings)


@dataclass(frozen=True)
class Area:
    """The part of the machine that findings belong to.

    Attributes:
        name: name of the area.
    """

    name: str

    def fine(self, subject: str, found: str) -> Finding:
        """Nothing to do."""
        return Finding(area=self.name, subject=subject, status="fine", found=found)

    def warning(self, subject: str, found: str, mend: str) -> Finding:
        """Training works, but worse than it could."""
        return Finding(area=self.name, subject=subject, status="warning", found=found, mend=mend)

    def mend(self, subject: str, found: str, mend: str) -> Finding:
        """Training fails, loses files or is open to strangers."""
        return Finding(area=self.name, subject=subject, status="mend", found=found, mend=mend)


@dataclass(frozen=True)
class Check:
    """A part of the examination.

    Attributes:
        area: area of its findings.
        subject: what it looks at, for the finding that it failed itself.
        look: makes the findings; it may raise anything.
        is_limited: whether it ends after `Doctor.timeout_s`.
    """

    area: Area
    subject: str
    look: Callable[[Doctor], Iterator[Finding]]
    is_limited: bool = True


def one_of(names: list[str], most: int = 4) -> str:
    """Names in words, the first few of many."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def size(num_bytes: float) -> str:
    """Bytes in words, in binary units."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}" if unit == "bytes" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"
