import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhimdist.config.train import ConfigWarning
from mhimdist.data.sampler import balanced_order, epoch_plan, most_instances, warn_of_larger_bags

FACTS = Path(__file__).parents[2] / "data_prep" / "c16_facts.json"


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    per_step=st.integers(1, 9),
    most=st.none() | st.integers(1, 3000),
    world=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_every_bag_once_equal_steps_and_the_same_bags_in_a_step_for_any_world(
    sizes, per_step, most, world, epoch
):
    same = {"seed": 1, "epoch": epoch, "bags_per_step": per_step, "max_instances": most}
    plan = epoch_plan(sizes, **same, world_size=world)
    alone = epoch_plan(sizes, **same)
    assert sorted(bag for step in plan for rank in step for bag in rank) == list(range(len(sizes)))
    assert {len(step) for step in plan} == {world}
    assert [sorted(bag for rank in step for bag in rank) for step in plan] == [
        sorted(step[0]) for step in alone
    ]
    for number, (step,) in enumerate(alone):
        assert len(step) <= per_step
        assert len(step) == plan.num_bags(number)
        assert most is None or len(step) == 1 or sum(sizes[bag] for bag in step) <= most
    for rank in range(world):
        for first in {0, len(plan) // 2, len(plan)}:
            mine = plan.of_rank(rank, first)
            assert [part.tolist() for part in mine] == [step[rank] for step in list(plan)[first:]]


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    per_step=st.integers(1, 9),
    most=st.none() | st.integers(1, 3000),
    world=st.integers(1, 5),
    num_classes=st.integers(0, 3),
)
def test_no_worker_has_more_instances_in_a_step_than_announced(sizes, per_step, most, world, num_classes):
    labels = [i % num_classes for i in range(len(sizes))] if num_classes else None
    limits = {"bags_per_step": per_step, "max_instances": most, "world_size": world, "balance_labels": labels}
    bound = most_instances(sizes, **limits)
    for epoch in range(4):
        plan = epoch_plan(sizes, seed=1, epoch=epoch, **limits)
        assert plan.loads_SW(sizes).max() <= bound
    if per_step == 1:
        assert bound == max(sizes)


def test_the_announced_instances_of_a_worker_are_close_to_those_of_its_steps():
    sizes = json.loads(FACTS.read_text())["bag_sizes"]
    for limits in ({"bags_per_step": 8}, {"bags_per_step": 64, "max_instances": 120_000, "world_size": 4}):
        plans = [epoch_plan(sizes, seed=1, epoch=epoch, **limits) for epoch in range(20)]
        most = max(plan.loads_SW(sizes).max() for plan in plans)
        assert most <= most_instances(sizes, **limits) < 2 * most


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    per_step=st.integers(1, 9),
    most=st.integers(1, 3000),
)
def test_an_instance_limit_makes_no_more_steps_than_needed(sizes, per_step, most):
    plan = epoch_plan(sizes, seed=1, epoch=0, bags_per_step=per_step, max_instances=most)
    order = epoch_plan(sizes, seed=1, epoch=0, bags_per_step=1).bags_K
    needed, room, bags = 0, 0, per_step
    for size in (sizes[bag] for bag in order):
        if bags == per_step or size > room:
            needed, room, bags = needed + 1, most, 0
        room, bags = room - size, bags + 1
    assert len(plan) == needed


def test_ranks_of_a_step_carry_about_the_same_number_of_instances():
    sizes = np.random.default_rng(0).lognormal(9, 0.8, 400).astype(int)
    plan = epoch_plan(sizes, seed=0, epoch=0, bags_per_step=16, world_size=2)
    loads = np.array([[sizes[rank].sum() for rank in step] for step in plan])
    assert (plan.loads_SW(sizes) == loads).all()
    assert loads.max(1).sum() / loads.mean(1).sum() < 1.05


def test_camelyon16_at_8_workers_leaves_less_than_a_tenth_idle_and_shares_an_epoch_evenly():
    sizes = np.array(json.loads(FACTS.read_text())["bag_sizes"])
    for epoch in range(20):
        # 50,000 instances per worker: slightly more than the largest bag, 44,402.
        plan = epoch_plan(
            sizes, seed=2021, epoch=epoch, bags_per_step=len(sizes), max_instances=400_000, world_size=8
        )
        loads_SW = plan.loads_SW(sizes)
        assert loads_SW.sum() == sizes.sum()
        assert loads_SW.sum(1).max() <= 400_000
        assert loads_SW.max(1).sum() <= 1.10 * loads_SW.mean(1).sum()
        per_epoch = loads_SW.sum(0)
        assert per_epoch.max() - per_epoch.min() <= 0.02 * per_epoch.mean()


@pytest.mark.parametrize(
    "steps",
    [
        {"bags_per_step": 1},
        {"bags_per_step": 4096},
        {"bags_per_step": 100_000, "max_instances": 20_000_000},
        {"bags_per_step": 100_000, "max_instances": 50_000},
    ],
)
def test_100_000_bags_are_dealt_to_1024_workers_in_less_than_2_seconds(steps):
    sizes = np.random.default_rng(0).lognormal(9, 0.8, 100_000).astype(int)
    started = time.process_time()  # only this process, because the test machine may be busy
    epoch_plan(sizes, seed=0, epoch=0, world_size=1024, **steps).of_rank(1023)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}])
def test_seed_and_epoch_decide_the_order(change):
    same = {"seed": 1, "epoch": 0, "bags_per_step": 1}
    assert list(epoch_plan([1] * 30, **same)) == list(epoch_plan([1] * 30, **same))
    assert list(epoch_plan([1] * 30, **same)) != list(epoch_plan([1] * 30, **(same | change)))


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=50), epochs=st.integers(1, 6))
def test_balanced_epochs_have_every_class_and_every_bag_of_a_class_equally_often(labels, epochs):
    orders = [balanced_order(labels, seed=3, epoch=epoch) for epoch in range(epochs)]
    present = set(labels)
    for order in orders:
        assert len(order) == len(labels)
        drawn = [sum(labels[bag] == label for bag in order) for label in present]
        assert max(drawn) - min(drawn) <= 1
    times = np.bincount(np.concatenate(orders), minlength=len(labels))
    for label in present:
        mine = times[np.array(labels) == label]
        assert mine.max() - mine.min() <= 1


def test_bags_larger_than_a_step_may_be_are_named(bags):
    bags.sizes_N = np.arange(1, 41)
    rows = np.arange(30)
    warn_of_larger_bags(bags, None, rows)
    warn_of_larger_bags(bags, 30, rows)
    with pytest.warns(ConfigWarning, match=r"max_instances=27: 3 of 30 bags have more.* 'slide-29', has 30$"):
        warn_of_larger_bags(bags, 27, rows)
    with pytest.warns(
        ConfigWarning, match=r"max_instances=27: 13 of 40 bags have more.* 'slide-39', has 40$"
    ):
        warn_of_larger_bags(bags, 27)


def test_a_balanced_plan_draws_a_rare_class_again_and_again():
    labels = [0] * 90 + [1] * 10
    plan = epoch_plan([5] * 100, seed=0, epoch=4, bags_per_step=4, world_size=2, balance_labels=labels)
    drawn = np.bincount([bag for step in plan for rank in step for bag in rank], minlength=100)
    assert drawn[:90].sum() == drawn[90:].sum() == 50
    assert drawn[90:].tolist() == [5] * 10
