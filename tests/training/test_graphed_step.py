"""Recorded steps against plain ones: with CUDA graphs on a GPU, with a stand-in for CUDA graphs on a CPU.

On the CPU the kernels' specification replaces the kernels; `test_kernels.py` compares the two. Under
TRITON_INTERPRET=1 the kernels themselves run, for minutes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from as_on_a_gpu import Recorder, Recording

from mhimdist.config.presets import preset
from mhimdist.config.train import load_config
from mhimdist.data.bags import PackedBags
from mhimdist.data.sampler import epoch_plan
from mhimdist.errors import NonFiniteError
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training.graphed_step import MOST_GRAPHS, Bucket, CudaGraphs, GraphedStep, rounded
from mhimdist.training.step import TrainingStep

pytest.importorskip("triton", reason="the kernels' operators need triton, from the extra dev")

FEATURES = 12
MODELS = {
    "abmil": {"hidden_dim": 16, "attention_dim": 8},
    "dsmil": {"hidden_dim": 16, "query_dim": 8},
    "clam_mb": {"hidden_dim": 16, "attention_dim": 8, "num_clustered": 2},
    "dtfd": {"hidden_dim": 16, "attention_dim": 8, "num_pseudo_bags": 3},
    "max_pooling": {"hidden_dim": 16},
}
UNMASKED = {"teacher.kind": "none", "masking": {}}
SIZES = [(25,), (18,), (9, 1, 5), (4, 8, 3)]


def _config(model="abmil", **changes):
    """A configuration in which everything that can change from step to step does change."""
    tree = {
        "model": {"name": model, **MODELS[model]},
        "masking": {
            "high": {"start": 0.3, "kind": "linear", "end": 0.1},
            "high_pool_share": 0.5,
            "low": 0.1,
            "random": {"start": 0.4, "kind": "cosine", "end": 0.3},
        },
        "teacher": {
            "kind": "momentum",
            "momentum": {"start": 0.7, "kind": "cosine", "end": 0.9},
            "dropout": True,
        },
        "loss": {"alpha": 0.5, "class_weights": [1.0, 2.0]},
        "precision": "float32",
    }
    if changes.get("teacher.kind") == "student_copy":
        del tree["teacher"]["momentum"]
    if changes.get("teacher.kind") == "none":
        tree |= {"teacher": {"kind": "none"}, "loss": {"alpha": 0}, "masking": changes["masking"]}
    return load_config(tree).override(changes)


def _bags(sizes, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bags = [torch.randn(size, FEATURES, generator=generator) for size in sizes]
    labels = torch.randint(2, (len(sizes),), generator=generator).tolist()
    return PackedBags.from_list(bags, labels, [f"{seed}-{i}" for i in range(len(sizes))]).to(device)


def _step(kind, config, device, **more):
    student = build(config.model, num_features=FEATURES, num_classes=2, seed=0).to(device)
    teacher = Teacher(config.teacher, student, student) if config.teacher.kind != "none" else None
    step = kind(config, student, teacher, **more)
    step.verdicts = []
    if teacher is None and config.model.name != "abmil":
        # The softmax takes away the scores' bias, so rounding decides its gradient; Adam must not scale that.
        step.optimizer.epsilon = 1e-3
    if device == "cpu":
        step._read_later = lambda found_2, place: step.verdicts.append((found_2.clone(), place))
    return step


def _graphed(config, device, **more):
    """A graphed step, and the recorders that it has made."""
    recorders = []

    def recorder():
        recorders.append(CudaGraphs() if device == "cuda" else Recorder())
        return recorders[-1]

    return _step(GraphedStep, config, device, recorder=recorder, **more), recorders


def _train(step, bags, number, total):
    epoch = number // len(SIZES)
    step.set_learning_rate(0.01 / (1 + epoch))
    return step(bags, Draws(3, epoch), progress=number / total, num_bags=len(bags))


def _state(step):
    """Everything that training changes: weights of both networks, Adam's moments and counts."""
    moments = step.optimizer.named_state().values()
    teacher = step.teacher.network.parameters() if step.teacher else ()
    return [value.detach().clone() for value in (*step.student.parameters(), *teacher, *moments)]


def _close(config):
    """Compare within a tolerance: products over padded bags may be summed in another order."""
    return {"rtol": 2e-2, "atol": 2e-3} if config.precision == "bf16" else {"rtol": 1e-4, "atol": 1e-6}


def _assert_close(ours, theirs, **tolerances):
    for mine, other in zip(_state(ours), _state(theirs), strict=True):
        torch.testing.assert_close(mine, other, **(tolerances or {"rtol": 1e-4, "atol": 1e-6}))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("abmil", {}),
        ("abmil", {"precision": "bf16"}),
        ("abmil", {"optimizer.clip_norm": 0.1, "teacher.kind": "student_copy"}),
        ("abmil", {"teacher.kind": "none", "masking": {"random": 0.2}}),
        ("dsmil", {}),
        ("dsmil", {"precision": "bf16"}),
        ("clam_mb", UNMASKED),
        ("dtfd", UNMASKED),
        ("max_pooling", UNMASKED),
    ],
)
def test_recorded_steps_train_as_plain_ones(device, model, changes):
    """Losses, masks, weights, moments and teacher, over epochs, while all schedules move."""
    config = _config(model, **changes)
    plain, (graphed, _) = _step(TrainingStep, config, device), _graphed(config, device)
    total = 4 * len(SIZES)
    for number in range(total):
        bags = _bags(SIZES[number % len(SIZES)], device, seed=number).to(device, plain.dtype)
        theirs, ours = (_train(step, bags, number, total) for step in (plain, graphed))
        assert ours.num_instances == theirs.num_instances
        for name in ("num_kept", "masked_high", "masked_low", "masked_random"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        for name in ("total_B", "task_B", "consistency_B"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name).detach(), **_close(config))
        assert graphed.momentum == plain.momentum
    _assert_close(graphed, plain, **_close(config))
    assert 2 <= len(graphed._graphs) <= 4


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # what torch.compile imports
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # what it looks at
@pytest.mark.filterwarnings("ignore:(?s).*Online softmax is disabled")
def test_compiled_losses_can_be_recorded():
    config = _config("abmil", compile=True)
    plain, (graphed, _) = _step(TrainingStep, _config("abmil"), "cuda"), _graphed(config, "cuda")
    for number in range(2 * len(SIZES)):
        bags = _bags(SIZES[number % len(SIZES)], "cuda", seed=number)
        for step in (plain, graphed):
            _train(step, bags, number, 2 * len(SIZES))
    _assert_close(graphed, plain)


def test_a_graph_serves_all_steps_of_its_bucket_and_the_unused_one_goes_first(device):
    config = _config(masking={"random": 0.25}, **{"loss.alpha": 0.0})
    plain, (graphed, recorders) = _step(TrainingStep, config, device), _graphed(config, device, most_graphs=2)
    sizes = [(40,), (10,), (16,), (6, 6), (9, 3), (10,), (90,), (2, 14), (9,)]
    held = []
    for number, bag_sizes in enumerate(sizes):
        bags = _bags(bag_sizes, device, seed=number)
        for step in (plain, graphed):
            _train(step, bags, number, 10)
        held.append([(bucket.num_bags, bucket.rows) for bucket in graphed._graphs])
    assert held == [
        [(1, 48)],
        [(1, 48), (1, 16)],
        [(1, 48), (1, 16)],
        [(1, 16), (2, 16)],
        [(1, 16), (2, 16)],
        [(2, 16), (1, 16)],
        [(1, 96)],  # more rows than the memory holds: all graphs of bags are recorded again
        [(1, 96), (2, 16)],
        [(2, 16), (1, 16)],
    ]
    assert len(recorders) == 3  # one before and one after; between them the one that records the update
    if device == "cpu":
        assert [len(recorder.recordings) for recorder in recorders] == [3, 1, 3]
    _assert_close(graphed, plain)


def test_the_features_get_memory_for_the_largest_step_at_once(device):
    """A larger bag then discards no graph; one that is larger than announced is trained, too."""
    config = _config()
    plain, (graphed, recorders) = _step(TrainingStep, config, device), _graphed(config, device, most_rows=70)
    places = set()
    for number, size in enumerate([10, 40, 70, 21, 52]):
        bags = _bags((size,), device, seed=number)
        for step in (plain, graphed):
            _train(step, bags, number, 5)
        places.add((graphed._features_TD.data_ptr(), len(graphed._features_TD)))
        assert len(recorders) == 2  # one for the bags' graphs, one for the update
        assert len(graphed._graphs) == number + 1
    assert {rows for _, rows in places} == {80}
    assert len(places) == 1
    bags = _bags((90,), device, seed=9)
    for step in (plain, graphed):
        _train(step, bags, 5, 6)
    assert (len(recorders), len(graphed._graphs), len(graphed._features_TD)) == (3, 1, 96)
    _assert_close(graphed, plain)


@pytest.mark.parametrize("model", MODELS)
def test_nothing_of_a_larger_bag_reaches_the_steps_after_it(device, model):
    """Bags of all sizes in a random order: each leaves rows in the memory that the next one is copied to."""
    config = _config(model, **({} if model in ("abmil", "dsmil") else UNMASKED))
    plain, (graphed, _) = _step(TrainingStep, config, device), _graphed(config, device, most_rows=100)
    sizes = np.random.default_rng(0).integers(1, 100, 24)
    assert (np.diff(sizes) < 0).sum() > 8
    for number, size in enumerate(sizes):
        bags = _bags((int(size),), device, seed=number)
        theirs, ours = (_train(step, bags, number, len(sizes)) for step in (plain, graphed))
        torch.testing.assert_close(ours.total_B, theirs.total_B.detach(), **_close(config))
        assert torch.equal(ours.num_kept, theirs.num_kept)
    _assert_close(graphed, plain)


@pytest.mark.parametrize(("bags_per_step", "first", "later"), [(1, 45, 0), (8, 12, 4)])
def test_the_steps_of_camelyon16_need_few_graphs(bags_per_step, first, later):
    """What two epochs record; the masks' ratios move, and the order of the bags is drawn anew."""
    facts = Path(__file__).parents[2] / "data_prep" / "c16_facts.json"
    sizes = np.random.default_rng(0).permutation(json.loads(facts.read_text())["bag_sizes"])[:270]
    step = _step(GraphedStep, preset("c16", "abmil"), "cpu", recorder=Recorder)
    found, recorded = set(), []
    for epoch in range(2):
        plan = epoch_plan(sizes, seed=1, epoch=epoch, bags_per_step=bags_per_step)
        for number, (bags,) in enumerate(plan):
            no_data = PackedBags.from_list([torch.empty(sizes[bag], 0) for bag in bags])
            progress = (epoch + plan.num_bags_before(number) / len(sizes)) / 200
            found.add(step._bucket(no_data, progress, len(bags)))
        recorded.append(len(found))
    assert recorded == [first, first + later]
    assert len(found) <= MOST_GRAPHS


def test_a_loss_that_is_not_finite_changes_nothing_and_spoils_no_later_step(device):
    """Nor do the bad bag's rows that remain after the next bag in the features' memory."""
    config = _config()
    plain, (graphed, _) = _step(TrainingStep, config, device), _graphed(config, device)
    for number, size in enumerate([20, 31, 17]):
        bags = _bags((size,), device, seed=number)
        if size == 31:
            before = _state(graphed)
            bags.features_TD[3:] = torch.nan
            graphed(bags, Draws(0, 7), progress=0.0, num_bags=1)
            if device == "cuda":
                with pytest.raises(NonFiniteError, match=r"in epoch 7 at bag\(s\) 1-0"):
                    graphed.check(wait=True)
            else:
                assert [bool(found_2[0]) for found_2, _ in graphed.verdicts] == [False, True]
                assert graphed.verdicts[1][1] == "in epoch 7 at bag(s) 1-0"
            assert all(torch.equal(*pair) for pair in zip(before, _state(graphed), strict=True))
        else:
            for step in (plain, graphed):
                _train(step, bags, number, 4)
    _assert_close(graphed, plain)


@pytest.mark.faults(43)
def test_a_feature_behind_the_mask_that_is_not_finite_changes_nothing(device):
    config = _config(
        **{
            "loss.alpha": 0.0,
            "masking.high": 0.0,
            "masking.high_pool_share": 1.0,
            "masking.low": 0.0,
            "masking.random": 0.9,
        }
    )
    graphed, _ = _graphed(config, device)
    _train(graphed, _bags((31,), device, seed=0), 0, 4)
    before, bags = _state(graphed), _bags((31,), device, seed=1)
    bags.features_TD[7, 3] = torch.inf
    hidden = [
        epoch
        for epoch in range(30)
        if graphed.method.loss(bags, Draws(0, epoch), 0.0).total_B.isfinite().all()
    ]
    graphed(bags, Draws(0, hidden[0]), progress=0.0, num_bags=1)
    if device == "cuda":
        with pytest.raises(NonFiniteError, match=r"at bag\(s\) 1-0"):
            graphed.check(wait=True)
    else:
        assert bool(graphed.verdicts[-1][0][0])
    assert all(torch.equal(*pair) for pair in zip(before, _state(graphed), strict=True))


def test_recording_changes_no_weight(device):
    """However often a recorder runs the two parts of a step."""
    graphed, _ = _graphed(_config(), device)
    _train(graphed, _bags((20,), device), 0, 4)
    before = _state(graphed)
    graphed._set_numbers(Draws(0, 1), 0.5, 0.5)
    graphed._record(Bucket(1, 32, 32, 1), _bags((30,), device)).replay()
    _, update = graphed._record_update()
    update()
    assert all(torch.equal(*pair) for pair in zip(before, _state(graphed), strict=True))


@pytest.mark.parametrize("count", [1, 127, 128, 129, 1023, 1025, 9075, 120_001])
def test_few_sizes_are_not_much_larger_than_what_they_are_for(count):
    assert count <= rounded(count) <= max(count * 1.125 + 1, 128 * -(-count // 128))
    assert rounded(rounded(count)) == rounded(count)


def test_bags_of_all_sizes_need_few_graphs():
    assert len({rounded(count) for count in range(1, 65_536)}) <= 64


def test_a_recording_keeps_numbers_and_memory_as_they_were():
    """The assumption of the tests above: a graph keeps the host's numbers and rereads the device's."""
    on_device, rate = torch.ones(2), 1.0
    recording = Recording()
    with recording:
        found = on_device * rate + on_device.sum()
    rate = 5.0
    on_device.fill_(2.0)
    recording.replay()
    assert found.tolist() == [6.0, 6.0]
    with pytest.raises(AssertionError, match="waits for the device"), Recording():
        on_device.sum().item()


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_a_lost_worker_is_noticed_before_a_recording_waits_for_it_without_end(device):
    """Recording synchronises the device, which a worker's missing gradients may keep from ever finishing."""

    class LostError(Exception):
        pass

    def lost(event):
        raise LostError(event)

    step, recorders = _graphed(_config(), device)
    _train(step, _bags([200], device), 0, 2)
    recordings = sum(len(recorder.recordings) for recorder in recorders)
    step._unread.append((torch.zeros(2), "the last step's event", ""))
    step.workers.wait = lost
    _train(step, _bags([200], device), 0, 2)
    with pytest.raises(LostError, match="the last step's event"):
        _train(step, _bags([900], device), 0, 2)
    assert sum(len(recorder.recordings) for recorder in recorders) == recordings
