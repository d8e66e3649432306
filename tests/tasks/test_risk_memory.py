"""The memory of the last predictions: several workers share it, a bad step leaves it alone."""

import threading
from typing import Any

import pytest
import torch
from task_bags import config, task_bags

from mhimdist.errors import ConfigError
from mhimdist.tasks import task_of
from mhimdist.tasks.memory import Memory
from mhimdist.training.trainer import Trainer
from mhimdist.training.workers import Workers

pytestmark = pytest.mark.numeric


class Threads(Workers):
    """The workers of a run as threads of one process; they meet in every exchange."""

    def __init__(self, rank: int, world_size: int, held: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self._held, self._barrier = rank, world_size, held, barrier

    def gather(self, value: Any) -> list[Any]:
        self._held[self.rank] = value.clone() if isinstance(value, torch.Tensor) else value
        self._barrier.wait(60)
        found = list(self._held)
        self._barrier.wait(60)
        return found

    def share_first(self, values: torch.Tensor) -> None:
        values.copy_(self.gather(values)[0])

    def add_up(self, values: torch.Tensor) -> None:
        values.copy_(torch.stack(self.gather(values)).sum(0))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.gather(values)).sum(0)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(map(any, zip(*self.gather(flags), strict=True)))

    def from_first(self, value: Any) -> Any:
        return self.gather(value)[0]

    def meet(self) -> None:
        self.gather(None)


def _trained(world_size: int) -> list[Trainer]:
    """Cox on several workers, one thread each; 12 bags train, so each second step has one bag."""
    held, barrier = [None] * world_size, threading.Barrier(world_size)
    trainers: list[Trainer | None] = [None] * world_size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            bags = task_bags("survival")
            workers = Threads(rank, world_size, held, barrier)
            settings = config("dsmil", "cox", bags_per_step=11)
            trainer = trainers[rank] = Trainer(settings, bags, bags.holdout(), workers=workers)
            list(trainer.epochs())
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [trainer for trainer in trainers if trainer is not None]


def test_two_workers_remember_what_one_does():
    (alone,), (first, second) = _trained(1), _trained(2)
    assert len(alone._train_rows) % 11 == 1  # one of two workers has no bag then
    assert not alone.run.memory.predictions_NP.isnan().any()
    assert torch.equal(first.run.memory.predictions_NP, second.run.memory.predictions_NP)
    torch.testing.assert_close(
        first.run.memory.predictions_NP, alone.run.memory.predictions_NP, rtol=1e-3, atol=1e-4
    )
    for one, two in zip(alone.history, first.history, strict=True):
        assert one.loss == pytest.approx(two.loss, rel=1e-4)


def _memory() -> tuple[Memory, torch.Tensor]:
    bags = task_bags("survival", num_bags=6)
    memory = Memory(
        task_of(bags, config("abmil", "cox").task), bags, bags.rows_of(bags.keys), torch.device("cpu")
    )
    memory.join(torch.zeros(memory.num_news))
    return memory, torch.from_numpy(bags.ids_N)


def test_a_bag_that_is_drawn_twice_has_the_mean_of_its_predictions():
    memory, ids_N = _memory()
    memory.note(ids_N[[2, 4, 2]], torch.tensor([[1.0], [7.0], [4.0]]))
    memory.take()
    rows = memory.others(ids_N).rows_B
    assert memory.predictions_NP[rows[2]].item() == 2.5
    assert memory.predictions_NP[rows[4]].item() == 7
    assert memory.predictions_NP.isnan().sum() == 4


def test_a_bad_step_leaves_the_memory_alone():
    memory, ids_N = _memory()
    memory.note(ids_N[:2], torch.tensor([[1.0], [2.0]]))
    memory.take(torch.tensor(1.0))
    assert memory.predictions_NP.isnan().all()
    memory.take(torch.tensor(0.0))
    assert memory.predictions_NP.isnan().sum() == 4


def test_the_rows_of_a_memory_ascend_with_time():
    memory, ids_N = _memory()
    others = memory.others(ids_N)
    times = others.targets_NK[:, 0]
    assert (times.diff() >= 0).all()
    expected = torch.from_numpy(task_bags("survival", num_bags=6).targets_NK[:, 0]).float()
    assert torch.equal(times[others.rows_B], expected)


@pytest.mark.parametrize("changes", [{"bags_per_step": 1}, {}])
def test_risk_sets_of_a_step_need_bags_on_one_worker(changes: dict[str, int]):
    bags = task_bags("survival")
    settings = config("abmil", "cox of a step", **changes)
    workers = Workers()
    workers.world_size = 1 if changes else 2
    with pytest.raises(ConfigError, match=r"task.risk_set: step compares .* choose memory"):
        Trainer(settings, bags, bags.holdout(), workers=workers)
