"""TensorBoard's files are written on when the wall clock is set, by any span."""

import signal

import pytest
import time_machine
from forked import fork, status_of

from mhimdist.sweep.tensorboard import TensorBoard

EPOCHS = 40


class Trial:
    """As much of a trial of Ray as its logger asks for."""

    def __init__(self, local_path: str) -> None:
        self.local_path, self.evaluated_params = local_path, {}

    def init_local_path(self) -> None:
        pass


@pytest.mark.faults(46)
@pytest.mark.parametrize("days", [-1, -1000, 1000])
def test_reports_go_on_when_the_clock_is_set(days, tmp_path):
    def child() -> None:
        signal.alarm(120)  # it waited for ever
        with time_machine.travel(1_800_000_000, tick=True) as clock:
            logger = TensorBoard()
            trial = Trial(str(tmp_path))
            logger.log_trial_start(trial)
            for epoch in range(EPOCHS):
                if epoch == EPOCHS // 4:
                    clock.shift(86_400 * days)
                logger.log_trial_result(epoch, trial, {"training_iteration": epoch, "auc": 0.5, "loss": 1.0})
            logger._trial_writer[trial].close()

    assert status_of(fork(child, tmp_path / "said")) == 0, (tmp_path / "said").read_text()
    (file,) = tmp_path.glob("events.out.tfevents.18*")
    assert file.read_bytes().count(b"ray/tune/auc") == EPOCHS
