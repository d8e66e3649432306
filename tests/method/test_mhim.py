import golden_values
import pytest
import torch

from mhimdist.config.train import load_config
from mhimdist.data.bags import PackedBags
from mhimdist.method.mhim import MHIM
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training.step import TrainingStep

pytestmark = pytest.mark.numeric
GOLDEN_MODELS = {
    "attn": {"name": "abmil", "dropout": 0},
    "attn_gated": {"name": "abmil", "gated": True, "dropout": 0},
    "selfattn": {"name": "transmil", "dropout": 0, "attention_dropout": 0},
    "dsmil": {"name": "dsmil", "dropout": 0},
}


@pytest.mark.parametrize("baseline", GOLDEN_MODELS)
def test_golden_trace_of_six_steps(baseline):
    config = load_config(
        {
            "model": GOLDEN_MODELS[baseline],
            "masking": {} if baseline == "selfattn" else {"high": 0.05, "low": 0.2},
            "teacher": {"kind": "momentum", "momentum": {"start": 0.99}},
            "loss": {"alpha": 0.5, "temperature": 0.1},
            "device": "cpu",
        }
    )
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (2e-4, 1e-5)
    student = build(config.model, num_features=1024, num_classes=2, seed=0)
    golden_values.fill(student, baseline, base_seed=1000)
    teacher = Teacher(config.teacher, student, None)
    golden_values.fill(teacher.network, baseline, base_seed=2000)
    train_step = TrainingStep(config, student, teacher)  # as training runs it, on parameters in one buffer

    for k, (size, label, kept, *losses) in enumerate(golden_values.FACTS[baseline]["trace"]):
        bag = golden_values.bag(size, seed=500 + k, label=label)
        step = train_step(bag, Draws(0, 0), progress=0.0, num_bags=1)
        assert step.num_kept == kept
        ours = [step.task_B.item(), step.consistency_B.item(), step.total_B.item()]
        assert ours == pytest.approx(losses, rel=1e-3)

    probe = golden_values.bag(200, seed=999)
    logits = "logits_bag" if baseline == "dsmil" else "logits"
    for name, network in (("student", student), ("teacher", teacher.network)):
        golden = torch.from_numpy(golden_values.ARRAYS[f"{baseline}/after/{name}_{logits}"])
        with torch.no_grad():
            error = (network(probe).logits_BC - golden.reshape(1, 2)).abs().max() / golden.abs().max()
        assert error < 1e-3


SMALL_MODELS = {
    "abmil": {"hidden_dim": 8, "attention_dim": 4},
    "dsmil": {"hidden_dim": 8, "query_dim": 4},
    "transmil": {"hidden_dim": 8, "num_heads": 2, "num_landmarks": 4},
}
STRATEGIES = {
    "none": {},
    "random": {"random": 0.5},
    "HAM": {"high": 0.5},
    "R-HAM": {"high": 0.5, "high_pool_share": 0.5, "random": 0.5},
    "L-HAM": {"high": 0.03, "low": 0.8},
    "LR-HAM": {"high": 0.02, "low": 0.2, "random": 0.7},
    "everything": {"high": 1.0, "low": 1.0, "random": 1.0},
}


@pytest.mark.faults(13)
@pytest.mark.parametrize("model", SMALL_MODELS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("alpha", [0, 0.5])
def test_the_smallest_bags_train_under_every_strategy(model, strategy, alpha):
    config = load_config(
        {
            "model": {"name": model, **SMALL_MODELS[model]},
            "masking": STRATEGIES[strategy],
            "teacher": {"kind": "momentum"},
            "loss": {"alpha": alpha},
        }
    )
    student = build(config.model, num_features=6, num_classes=3, seed=0)
    method = MHIM(config, student, Teacher(config.teacher, student, None))
    kept = []
    student.register_forward_pre_hook(lambda _, args: kept.append(args[0].offsets_B1.diff().tolist()))
    generator = torch.Generator().manual_seed(0)
    bags = PackedBags.from_list([torch.randn(n, 6, generator=generator) for n in (1, 2, 3)], [0, 1, 2])
    step = method.loss(bags, Draws(0, 0), progress=0.0)
    step.total_B.sum().backward()
    assert step.total_B.isfinite().all()
    of_each = kept[-1]  # a teacher that is another network has no hook
    assert len(of_each) == 3
    assert all(1 <= mine <= size for mine, size in zip(of_each, (1, 2, 3), strict=True))
    assert step.num_kept == sum(of_each)
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())


def test_the_students_projection_sees_only_what_is_kept():
    config = load_config({"masking": {"random": 0.5}, "teacher": {"kind": "momentum"}})
    student = build(config.model, num_features=1024, num_classes=2, seed=0)
    teacher = Teacher(config.teacher, student, None)
    seen = []
    student.projection.register_forward_hook(lambda _, args, out: seen.append((args[0].num_rows, len(out))))
    step = MHIM(config, student, teacher).loss(golden_values.bag(100, seed=0), Draws(0, 0), progress=0.0)
    assert step.num_kept == 50
    assert seen == [(50, 50)]


def test_class_weights_multiply_the_cross_entropy_of_their_class():
    bag = golden_values.bag(30, seed=1, label=1)
    losses = []
    for weights in (None, [1.0, 3.0]):
        config = load_config({"teacher": {"kind": "none"}, "loss": {"alpha": 0, "class_weights": weights}})
        student = build(config.model, num_features=1024, num_classes=2, seed=0)
        losses.append(MHIM(config, student, None).loss(bag, Draws(0, 0), 0.0).total_B.item())
    assert losses[1] == pytest.approx(3 * losses[0])
