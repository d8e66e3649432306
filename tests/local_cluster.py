"""A local cluster as a context, for tests that run more than one command on it."""

import json
import subprocess
import sys
from types import TracebackType
from typing import Self

from mhimdist.cluster.local import START_TIMEOUT_S
from mhimdist.errors import ClusterError


class LocalCluster:
    """`python -m mhimdist.cluster.local` in another process, which ends even if this one is killed.

    Attributes:
        env: the environment in which a subprocess finds the cluster; set on entry.
    """

    env: dict[str, str]

    def __init__(self, *, num_cpus: int | None = None, start_timeout_s: float = START_TIMEOUT_S) -> None:
        """Describe a cluster; entering the context starts it.

        Args:
            num_cpus: CPUs that Ray may assign; None for all that it finds.
            start_timeout_s: most seconds until the cluster is ready.
        """
        self._command = [sys.executable, "-m", "mhimdist.cluster.local", f"--start-timeout={start_timeout_s}"]
        if num_cpus is not None:
            self._command.append(f"--num-cpus={num_cpus}")
        # It ends when its standard input closes: on exit, and in any way that this process may end.
        hold = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"
        self._command += ["--", sys.executable, "-c", hold]

    def __enter__(self) -> Self:
        """Start the cluster and wait until it accepts jobs.

        Raises:
            ClusterError: it did not start.
        """
        # Its own session shields it from Ctrl-C in a terminal: it ends when this process leaves the context.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
        except BaseException:
            self._end()
            raise
        if not line:
            raise ClusterError(self._end().strip().removeprefix("error: "))
        self.env = json.loads(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes of the cluster, whatever they are doing."""
        self._end()

    def _end(self) -> str:
        """End all processes and wait for that; returns their output on stderr."""
        self._process.terminate()
        _, printed = self._process.communicate()
        return printed
