"""The cap of a run on a share of a GPU: with Ray's own shares and a faked `torch.cuda`, and for real."""

import subprocess
import sys

import pytest
import ray
import torch

from mhimdist.config.train import TrainConfig
from mhimdist.distributed import shared_gpu
from mhimdist.distributed.shared_gpu import GPU_CONTEXT_BYTES, tensor_bytes, within_share
from mhimdist.errors import ConfigError

GIB = 2**30
TOTAL = 80 * GIB
ON_GPU = TrainConfig(device="cuda")
# The form of torch's message; the part "allowed" is there if a cap is set.
SAID = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB of which "
    "70.00 GiB is free. Including non-PyTorch memory, this process has 9.00 GiB memory in use. 13.46 GiB "
    "allowed; Of the allocated memory 8.00 GiB is allocated by PyTorch"
)


class _Cuda:
    """The part of `torch.cuda` that a cap uses."""

    def __init__(self, monkeypatch, total: int = TOTAL) -> None:
        self.fractions: list[float] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (total // 2, total))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.fractions.append)


@pytest.fixture
def share(monkeypatch):
    """Sets the share that Ray has given this process."""
    return lambda gpus: monkeypatch.setattr(shared_gpu, "_share_of_this_process", lambda: gpus)


@pytest.mark.parametrize("num_runs", [2, 4, 7, 16])
def test_the_caps_and_contexts_of_all_runs_fit_on_their_gpu(num_runs):
    each = tensor_bytes(1 / num_runs, TOTAL)
    assert each > 0
    assert num_runs * (each + GPU_CONTEXT_BYTES) <= 0.9 * TOTAL


def test_a_share_is_capped_and_a_whole_gpu_or_a_cpu_is_not(share, monkeypatch):
    cuda = _Cuda(monkeypatch)
    for gpus, config in ((0.25, ON_GPU), (1.0, ON_GPU), (2.0, ON_GPU), (0.0, ON_GPU)):
        share(gpus)
        with within_share(config):
            pass
    share(0.25)
    with within_share(TrainConfig(device="cpu")):
        pass
    assert cuda.fractions == [pytest.approx((0.9 * 20 * GIB - GPU_CONTEXT_BYTES) / TOTAL)]


def test_a_share_that_ran_out_is_named_with_what_to_do(share, monkeypatch):
    _Cuda(monkeypatch)
    share(0.25)
    with pytest.raises(torch.OutOfMemoryError) as raised, within_share(ON_GPU):
        raise torch.OutOfMemoryError(SAID)
    assert str(raised.value) == (
        f"{SAID} (the run has 0.25 of a GPU, and its tensors 17.4 GiB of 80.0 GiB: raise gpus_per_run, make "
        "the model smaller, or its steps by train.max_instances)"
    )
    share(1.0)
    with pytest.raises(torch.OutOfMemoryError, match=r"allocated by PyTorch$"), within_share(ON_GPU):
        raise torch.OutOfMemoryError(SAID)


def test_a_share_without_room_for_a_context_is_refused_before_anything_trains(share, monkeypatch):
    cuda = _Cuda(monkeypatch, total=8 * GIB)
    share(0.05)
    with (
        pytest.raises(ConfigError, match=r"0\.05 of a GPU of 8\.0 GiB leaves .* more than 0\.0814"),
        within_share(ON_GPU),
    ):
        raise AssertionError("it began to train")
    assert cuda.fractions == []


@pytest.mark.long
@pytest.mark.ray
def test_ray_says_which_share_a_task_and_an_actor_in_a_placement_group_have():
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        asked = ray.remote(shared_gpu._share_of_this_process)
        assert ray.get(asked.options(num_gpus=0.25).remote()) == 0.25
        assert ray.get(asked.options(num_gpus=1).remote()) == 1
        assert ray.get(asked.options(num_gpus=0).remote()) == 0
        group = ray.util.placement_group([{"CPU": 1, "GPU": 0.5}])
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)

        class Actor:
            def share(self) -> float:
                return shared_gpu._share_of_this_process()

        actor = ray.remote(Actor).options(num_cpus=1, num_gpus=0.5, scheduling_strategy=strategy).remote()
        assert ray.get(actor.share.remote()) == 0.5
    finally:
        ray.shutdown()


_GREEDY = """
import torch
from mhimdist.config.train import TrainConfig
from mhimdist.distributed import shared_gpu
shared_gpu._share_of_this_process = lambda: {share}
total = torch.cuda.mem_get_info()[1]
try:
    with shared_gpu.within_share(TrainConfig(device="cuda")):
        small = torch.ones(2**20, device="cuda")
        torch.empty(int({share} * total), dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    print(error)
assert small.sum().item() == 2**20
"""


@pytest.mark.gpu
def test_the_greedy_run_runs_out_and_its_neighbour_goes_on():
    mine = torch.ones(2**20, device="cuda")
    greedy = subprocess.run(
        [sys.executable, "-c", _GREEDY.format(share=0.2)], capture_output=True, text=True, timeout=300
    )
    assert greedy.returncode == 0, greedy.stderr
    assert greedy.stdout.startswith("CUDA out of memory")
    assert "the run has 0.2 of a GPU" in greedy.stdout
    total = torch.cuda.mem_get_info()[1]
    more = torch.ones(int(0.2 * total) // 4, device="cuda")  # what the other one was refused is still free
    assert mine.sum().item() + more[-1].item() == 2**20 + 1
