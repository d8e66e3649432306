"""TensorBoard's files of a sweep, which go on when the wall clock is set."""

import queue
import time

from ray.tune.logger import TBXLoggerCallback
from tensorboardX import event_file_writer


class TensorBoard(TBXLoggerCallback):
    """Ray's logger, whose thread waits by the steady clock.

    tensorboardX waits by the wall clock. If that is set back, nothing is flushed until it has caught up. If
    it is set back by more than 24 days, the wait is too long for the system: the thread ends, and a few
    reports later the sweep would wait for it for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        event_file_writer._EventLoggerThread = _SteadyThread


class _SteadyThread(event_file_writer._EventLoggerThread):
    def run(self) -> None:
        flush_at, has_more = 0.0, False
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, flush_at - time.monotonic()))
                if type(event) is type(self._shutdown_signal):
                    return
                self._record_writer.write_event(event)
                has_more = True
            except queue.Empty:
                pass
            if time.monotonic() >= flush_at:
                if has_more:
                    self._record_writer.flush()
                flush_at, has_more = time.monotonic() + self._flush_secs, False
