"""The examination: every check in turn, each within its time, and none of them fatal."""

import platform
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import mhimdist
from mhimdist import terminal
from mhimdist.doctor import gpus, home_folder, locks, machine, packages, ray_cluster, shards
from mhimdist.doctor.findings import Check, Diagnosis, Finding
from mhimdist.doctor.options import Doctor
from mhimdist.doctor.table import Shown
from mhimdist.errors import UnfitError
from mhimdist.foreign_text import one_line, say

_WAYS_OUT = "see what the message names, or give it more time: `mhimdist doctor --timeout-s 300`"

CHECKS: tuple[Check, ...] = (
    Check(packages.AREA, "interpreter", packages.python),
    Check(packages.AREA, "packages", packages.required),
    Check(packages.AREA, "torch and Triton", packages.triton),
    Check(packages.AREA, "extras", packages.extras),
    Check(packages.AREA, "start of Ray", packages.slowing),
    Check(packages.AREA, "extensions", packages.added),
    Check(gpus.AREA, "torch and driver", gpus.torch_and_driver),
    Check(gpus.AREA, "DALI", gpus.dali),
    Check(machine.AREA, "cores", machine.threads),
    Check(machine.AREA, "memory", machine.memory),
    Check(machine.AREA, "/dev/shm", machine.shared_memory),
    Check(machine.AREA, "open files", machine.open_files),
    Check(machine.AREA, "processes", machine.processes),
    Check(home_folder.AREA, "writing", home_folder.writable),
    Check(home_folder.AREA, "file system", home_folder.file_system),
    Check(home_folder.AREA, "free space", home_folder.space),
    Check(home_folder.AREA, "locks", locks.locks),
    Check(home_folder.AREA, "renaming", home_folder.renames),
    Check(home_folder.AREA, "clock", home_folder.clock),
    Check(ray_cluster.AREA, "access", ray_cluster.access),
    Check(ray_cluster.AREA, "token", ray_cluster.token),
    Check(ray_cluster.AREA, "head", ray_cluster.cluster),
    Check(shards.AREA, "shards", shards.shards, is_limited=False),
)


def run_doctor(job: Doctor) -> None:
    """Look at everything and print it, as a table or as JSON.

    Args:
        job: where to look, and how to print.

    Raises:
        UnfitError: something must be mended; the message names it. All findings have been printed.
    """
    diagnosis = diagnose(job)
    if job.as_json:
        say(diagnosis.model_dump_json(indent=2))
    else:
        terminal.console().print(Shown(diagnosis))
    names = [f"{each.area}: {each.subject}" for each in diagnosis.findings if each.status == "mend"]
    if names:
        raise UnfitError(f"{len(names)} to mend: {', '.join(names)}")


def diagnose(job: Doctor, checks: Sequence[Check] | None = None) -> Diagnosis:
    """Make all checks, one after the other.

    Args:
        job: where to look.
        checks: what to look at; None for all.
    """
    start, now = time.monotonic(), datetime.now(UTC)
    console = terminal.console(stderr=True)
    findings: list[Finding] = []
    with console.status("looking") as status:
        for check in CHECKS if checks is None else checks:
            status.update(f"looking: {check.area.name}, {check.subject}")
            if not check.is_limited:
                status.stop()  # it shows its own progress
            findings += _findings(check, job)
    return Diagnosis(
        mhimdist=mhimdist.__version__,
        host=platform.node(),
        checked_at=now.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - start, 1),
        findings=[_plain(finding) for finding in findings],
    )


def _findings(check: Check, job: Doctor) -> list[Finding]:
    """The findings of a check; that it failed or hangs is one."""
    found: list[Finding] = []

    def look() -> None:
        try:
            for finding in check.look(job):
                found.append(finding)  # at once: what comes next may fail or hang
        except Exception as error:  # whatever it is, the other checks go on
            text = f"{type(error).__name__}: {error}"
            found.append(check.area.warning(check.subject, f"this could not be checked: {text}", _WAYS_OUT))

    if not check.is_limited:
        look()
        return found
    # A hanging file server holds the thread, and must not hold the command.
    thread = threading.Thread(target=look, name=f"doctor: {check.subject}", daemon=True)
    thread.start()
    # The check ends what it started after `timeout_s`, and says so itself.
    thread.join(2 * job.timeout_s + 10)
    if thread.is_alive():
        text = f"no end within {2 * job.timeout_s + 10:g} s: a file server or a driver may hang"
        return [*found, check.area.mend(check.subject, text, _WAYS_OUT)]
    return found


def _plain(finding: Finding) -> Finding:
    """A finding in one line per text, because paths and messages of others are in it."""
    mend = None if finding.mend is None else one_line(finding.mend)
    return finding.model_copy(update={"found": one_line(finding.found), "mend": mend})
