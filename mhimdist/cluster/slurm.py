"""Write a batch script for Slurm: `mhimdist cluster slurm --nodes 4 --out sweep.sbatch`."""

import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mhimdist import files
from mhimdist.cluster.slurm_options import SlurmScript
from mhimdist.foreign_text import put, say
from mhimdist.process import run

SHIPPED = Path("cluster/slurm.sbatch")
"""The script in the repository, which is what `SlurmScript()` describes."""


def script(job: SlurmScript) -> str:
    """The text of a batch script; equal settings yield equal texts."""
    environment = Environment(
        loader=PackageLoader("mhimdist.cluster", "."),
        autoescape=False,  # it is no HTML: everything that is inserted is checked, and quoted for the shell
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("slurm.sbatch").render(
        file=shlex.quote(str(job.out or SHIPPED)),
        signal_s=job.signal_s,
        directives=job.directives,
        home=shlex.quote(str(job.home)),
        modules=job.modules.split(),
        venv=job.venv and shlex.quote(str(job.venv)),
        image=job.image and shlex.quote(str(job.image)),
        gpus=job.gpus,
        bind=_quoted(f"--bind={','.join(str(path) for path in (job.home, *job.bind))}"),
        command=shlex.join(shlex.split(job.command)),
        interface=f" --interface={job.interface}" if job.interface else "",
        restarts=job.restarts,
    )


def _quoted(text: str) -> str:
    """A text in single quotes; `shlex.quote` leaves out those that only a reader needs."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def write_script(job: SlurmScript) -> None:
    """Write a batch script to `job.out`, or print it.

    Raises:
        DiskFullError: it does not fit on the disk.
        OSError: the file cannot be written.
    """
    text = script(job)
    if job.out is None:
        put(text)
        return
    files.write_text(job.out, text)
    say(f"{job.out}: submit it by sbatch {shlex.quote(str(job.out))}")


def main() -> None:
    """Command line: see `SlurmScript`."""
    write_script(SlurmScript.from_command_line())


if __name__ == "__main__":
    run(main)
