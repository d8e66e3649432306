import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhimdist.data.sampler import epoch_plan


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    per_step=st.integers(1, 9),
    world=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_every_bag_once_equal_steps_and_the_same_bags_in_a_step_for_any_world(sizes, per_step, world, epoch):
    plan = epoch_plan(sizes, seed=1, epoch=epoch, bags_per_step=per_step, world_size=world)
    alone = epoch_plan(sizes, seed=1, epoch=epoch, bags_per_step=per_step)
    assert sorted(bag for step in plan for rank in step for bag in rank) == list(range(len(sizes)))
    assert {len(step) for step in plan} == {world}
    assert [sorted(bag for rank in step for bag in rank) for step in plan] == [
        sorted(step[0]) for step in alone
    ]


def test_ranks_of_a_step_carry_about_the_same_number_of_instances():
    sizes = np.random.default_rng(0).lognormal(9, 0.8, 400).astype(int)
    plan = epoch_plan(sizes, seed=0, epoch=0, bags_per_step=16, world_size=2)
    loads = np.array([[sizes[rank].sum() for rank in step] for step in plan])
    assert loads.max(1).sum() / loads.mean(1).sum() < 1.05


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}])
def test_seed_and_epoch_decide_the_order(change):
    same = {"seed": 1, "epoch": 0, "bags_per_step": 1}
    assert epoch_plan([1] * 30, **same) == epoch_plan([1] * 30, **same)
    assert epoch_plan([1] * 30, **same) != epoch_plan([1] * 30, **(same | change))
