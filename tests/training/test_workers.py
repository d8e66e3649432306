"""Runs of two real processes that communicate over gloo, against the same run in one process."""

import json
import os
import time
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from memory_bags import MemoryBags, gaussian_bags

from mhimdist.config.train import TrainConfig, load_config
from mhimdist.errors import WorkerLostError
from mhimdist.ops.draws import Draws
from mhimdist.training.trainer import Trainer
from mhimdist.training.workers import DistributedWorkers, Workers

pytestmark = [pytest.mark.long, pytest.mark.numeric]


def _config(**changes) -> TrainConfig:
    settings = {
        "model": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "masking": {"high": {"start": 0.1, "kind": "cosine"}, "high_pool_share": 0.5, "random": 0.3},
        "teacher": {"kind": "momentum", "momentum": {"start": 0.9}},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 3,
        "bags_per_step": 4,
        "device": "cpu",
    }
    return load_config(settings).override(changes)


def _bags() -> MemoryBags:
    # 54 bags train: thirteen steps of four bags, and a last step of two.
    return gaussian_bags(num_bags=134)


def _weights(network) -> torch.Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def _gradient(workers: Workers, step: list[list[int]]) -> torch.Tensor:
    """The gradient of one step, as the trainer forms it."""
    bags = _bags()
    trainer = Trainer(_config(), bags, bags.holdout(), workers=workers)
    trainer.optimizer.step = lambda: None
    mine = bags.load(bags.rows_of(trainer.split.train)[step[workers.rank]])
    trainer._train_on(mine, sum(map(len, step)), Draws(0, 0), progress=0.2)
    return torch.cat([p.grad.flatten() for p in trainer.student.parameters()])


def _curve(workers: Workers, config: TrainConfig) -> dict:
    bags = _bags()
    trainer = Trainer(config, bags, bags.holdout(), workers=workers)
    records = list(trainer.epochs())
    return {
        "loss": torch.tensor([r.loss for r in records], dtype=torch.float64),
        "auc": torch.tensor([r.student_validation_score for r in records]),
        "kept": torch.tensor([r.kept_ratio for r in records]),
        "student": _weights(trainer.student),
        "teacher": _weights(trainer.teacher.network),
        "optimizer": torch.cat([s["exp_avg"].flatten() for s in trainer.optimizer.state.values()]),
    }


UNEVEN = [[0, 1, 2], [3]]
ONE_SIDED = [[], [4, 5]]
CONFIGS = {
    "count": {},
    "instances": {"bags_per_step": 8, "max_instances": 150},
    "single bags": {"bags_per_step": 1},
    "samples": {"instances_per_bag": 12, "evaluation_samples": 2},
}


def _everything(rank: int, folder: str) -> None:
    workers = _join(rank, folder)
    found = {f"gradient {step}": _gradient(workers, step) for step in (UNEVEN, ONE_SIDED)}
    found |= {name: _curve(workers, _config(**changes)) for name, changes in CONFIGS.items()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _join(rank: int, folder: str, timeout_s: float = 60, world_size: int = 2) -> DistributedWorkers:
    """Join as this rank; `timeout_s` counts from then on, not while the processes still start."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(f"{folder}/meet", world_size)
    store.set(str(rank), "")
    store.wait([str(each) for each in range(world_size)], timedelta(seconds=600))
    dist.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    return DistributedWorkers(timeout_s)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of two processes, by rank."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_everything, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("step", [UNEVEN, ONE_SIDED], ids=["3 and 1", "0 and 2"])
def test_the_gradient_is_the_mean_over_the_bags_however_they_are_dealt(two, step):
    alone = _gradient(Workers(), [[bag for bags in step for bag in bags]])
    assert alone.abs().max() > 1e-3
    for found in two:
        torch.testing.assert_close(found[f"gradient {step}"], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_students_teachers_and_optimisers_stay_equal(two, name):
    first, second = (found[name] for found in two)
    for what in ("student", "teacher", "optimizer", "loss", "auc", "kept"):
        assert torch.equal(first[what], second[what]), what


@pytest.mark.parametrize("name", CONFIGS)
def test_two_workers_train_as_one_does(two, name):
    alone = _curve(Workers(), _config(**CONFIGS[name]))
    assert (two[0][name]["loss"] - alone["loss"]).abs().max() < 1e-4
    assert torch.equal(two[0][name]["kept"], alone["kept"])
    torch.testing.assert_close(two[0][name]["student"], alone["student"], rtol=1e-2, atol=1e-3)


def _hang(rank: int, folder: str) -> None:
    bags = _bags()
    # The imports and the setup of a first step take seconds on a busy machine, differently per rank.
    list(Trainer(_config(epochs=1), bags, bags.holdout()).epochs())
    workers = _join(rank, folder, timeout_s=3)
    trainer = Trainer(_config(), bags, bags.holdout(), workers=workers)
    if rank == 1:
        train_on, count = trainer._train_on, iter(range(100))

        def stuck(*arguments, **named):
            if next(count) == 5:
                while not (Path(folder) / "0.json").exists():
                    time.sleep(0.1)
            return train_on(*arguments, **named)

        trainer._train_on = stuck
    try:
        list(trainer.epochs())
    except WorkerLostError as error:
        (Path(folder) / f"{rank}.json").write_text(json.dumps(str(error)))
    os._exit(0)  # leaving a process group with a dead member would hang or raise


@pytest.mark.faults(22)
def test_a_hung_worker_is_named_within_the_timeout(tmp_path):
    torch.multiprocessing.spawn(_hang, (str(tmp_path),), nprocs=2)
    message = json.loads((tmp_path / "0.json").read_text())
    assert "worker 0 of 2 gave up waiting: no answer from rank(s) 1 (timeout 3 s)" in message


class _NeverReached:
    """Stands in for an event behind the kernel of an exchange whose other worker is dead."""

    def __init__(self, looked: Path) -> None:
        self.looked = looked

    def query(self) -> bool:
        self.looked.touch()
        return False

    def synchronize(self) -> None:
        raise AssertionError("the host waits for the device without end")


def _check_beside_a_dead_worker(rank: int, folder: str, has_met: bool) -> None:
    step = Trainer(_config(), (bags := _bags()), bags.holdout()).train_step
    looked = Path(folder) / "looked"
    step._unread.append((torch.zeros(2), _NeverReached(looked), "in epoch 0"))
    step.workers = workers = _join(rank, folder, timeout_s=3)
    if rank == 1:
        if has_met:
            workers.meet()
            while not looked.exists():
                time.sleep(0.01)
        os._exit(0)
    started = time.monotonic()
    try:
        step.check(wait=True)
    except WorkerLostError as error:
        found = {"message": str(error), "seconds": time.monotonic() - started, "looked": looked.exists()}
        (Path(folder) / "0.json").write_text(json.dumps(found))
    os._exit(0)


@pytest.mark.parametrize("has_met", [False, True], ids=["before they meet", "while the device waits"])
def test_a_worker_that_dies_is_named_where_the_device_would_wait_for_it_without_end(tmp_path, has_met):
    torch.multiprocessing.spawn(_check_beside_a_dead_worker, (str(tmp_path), has_met), nprocs=2)
    found = json.loads((tmp_path / "0.json").read_text())
    assert "worker 0 of 2 gave up waiting: no answer from rank(s) 1 (timeout 3 s)" in found["message"]
    # At most the timeout for each of the two; a busy machine is slower.
    assert found["seconds"] < 30
    assert found["looked"] == has_met, "the host looks at the device only once all have met"


def _meet_without_the_last(rank: int, folder: str) -> None:
    workers = _join(rank, folder, timeout_s=3, world_size=3)
    workers.meet()
    if rank == 2:
        os._exit(0)
    try:
        workers.meet()
    except WorkerLostError as error:
        (Path(folder) / f"{rank}.json").write_text(json.dumps(str(error)))
    os._exit(0)


@pytest.mark.faults(22)
@pytest.mark.slow
def test_every_survivor_names_the_dead_worker(tmp_path):
    """The control group is broken then, and some of them notice it only after the timeout."""
    torch.multiprocessing.spawn(_meet_without_the_last, (str(tmp_path),), nprocs=3)
    for rank in (0, 1):
        message = json.loads((tmp_path / f"{rank}.json").read_text())
        assert f"worker {rank} of 3 gave up waiting: no answer from rank(s) 2 (timeout 3 s)" in message
