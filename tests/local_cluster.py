"""A local cluster as a context, for tests that run several commands against one."""

import json
import subprocess
import sys
from types import TracebackType
from typing import Self

from mhimdist.cluster.local import START_TIMEOUT_S
from mhimdist.errors import ClusterError


class LocalCluster:
    """`python -m mhimdist.cluster.local` in a process of its own: taken down even if this one is killed.

    Attributes:
        env: the environment for `subprocess` with which commands find the cluster; set on entry.
    """

    env: dict[str, str]

    def __init__(self, *, num_cpus: int | None = None, start_timeout_s: float = START_TIMEOUT_S) -> None:
        """Describe a cluster; entering the context starts it.

        Args:
            num_cpus: CPUs that Ray may hand out, by default as many as it finds.
            start_timeout_s: how long it may take to get ready.
        """
        self._command = [sys.executable, "-m", "mhimdist.cluster.local", f"--start-timeout={start_timeout_s}"]
        if num_cpus is not None:
            self._command.append(f"--num-cpus={num_cpus}")
        # Ends when its standard input does: on exit, and on whatever end this process may meet.
        hold = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"
        self._command += ["--", sys.executable, "-c", hold]

    def __enter__(self) -> Self:
        """Start the cluster and wait until it takes jobs.

        Raises:
            ClusterError: it did not start.
        """
        # Its own session keeps a terminal's Ctrl-C from it: it ends when this process has left the context.
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
        """Take down all that was started, whatever it is doing."""
        self._end()

    def _end(self) -> str:
        """Have all taken down and wait for it; what was printed to stderr."""
        self._process.terminate()
        _, printed = self._process.communicate()
        return printed
