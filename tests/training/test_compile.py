"""`compile`: compiled code returns what plain code returns, and no bag size causes a new compilation."""

import functools

import pytest
import torch
import torch._dynamo.testing
from memory_bags import gaussian_bags

from mhimdist.config.train import TrainConfig, load_config
from mhimdist.data.bags import PackedBags
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training.step import TrainingStep

pytestmark = [
    pytest.mark.numeric,
    # Warnings that torch itself hides while it compiles.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
MODELS = {
    "abmil": {"hidden_dim": 16, "attention_dim": 8},
    "dsmil": {"hidden_dim": 16, "query_dim": 8},
}
MASKED = {"high": 0.2, "high_pool_share": 0.5, "random": {"start": 0.5, "kind": "cosine"}}


def _config(model: str, masking: dict) -> TrainConfig:
    return load_config(
        {
            "model": {"name": model, **MODELS[model]},
            "masking": masking,
            "teacher": {"kind": "momentum"},
            "device": "cpu",
            "precision": "float32",
        }
    )


def _step(config: TrainConfig) -> TrainingStep:
    student = build(config.model, num_features=12, num_classes=2, seed=0)
    return TrainingStep(config, student, Teacher(config.teacher, student, student))


def _follow(config: TrainConfig, sizes: list[tuple[int, ...]]) -> None:
    """A compiled step next to a plain one: equal losses all along, equal weights at the end."""
    plain, compiled = _step(config), _step(config.override({"compile": True}))
    generator = torch.Generator().manual_seed(0)
    for number, bag_sizes in enumerate(sizes):
        features = [torch.randn(size, 12, generator=generator) for size in bag_sizes]
        bags = PackedBags.from_list(features, [i % 2 for i in range(len(bag_sizes))])
        theirs, ours = (
            step(bags, Draws(0, number), progress=number / len(sizes), num_bags=len(bags))
            for step in (plain, compiled)
        )
        torch.testing.assert_close(ours.total_B, theirs.total_B)
    for mine, other in zip(compiled.student.parameters(), plain.student.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.fixture
def compilations(monkeypatch):
    """Counts compilations; torch's own tracing and autograd run, but not the slow generation of code."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("masking", [{}, MASKED], ids=["unmasked", "masked"])
def test_no_bag_size_is_compiled_for(compilations, model, masking):
    """Sixty sizes cause two compilations: one for single bags and one for any other number of bags."""
    config = _config(model, masking)
    _follow(config, [(7,), (5, 9), (6, 4, 3)])
    assert compilations.frame_count == 2
    sizes = [(size,) for size in range(1, 31)] + [(size, 2 * size, 3) for size in range(10, 40)]
    _follow(config, sizes)
    assert compilations.frame_count == 2


def test_runs_of_other_settings_share_what_is_compiled(compilations):
    """Many configurations in one process, as in a sweep: torch stops compiling what it compiles too often."""
    for number in range(12):
        _follow(_config("abmil", {}).override({"loss.alpha": 0.1 + number / 20}), [(7,), (5, 9)])
    assert compilations.frame_count <= 4


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("default")
def test_generated_code_trains_as_the_plain_step(model):
    """With inductor, which needs a C++ compiler."""
    torch._dynamo.reset()
    _follow(_config(model, MASKED), [(30,), (7,), (5, 9, 1), (3, 3, 8)])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_bf16_is_compiled_too(monkeypatch):
    """In bf16 the backward pass, as inductor cuts it off, keeps the embeddings of the teacher."""
    torch._dynamo.reset()
    backend = functools.partial(torch.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", backend)
    plain, compiled = (
        _step(_config("abmil", MASKED).override({"precision": "bf16", "compile": is_compiled}))
        for is_compiled in (False, True)
    )
    bags = PackedBags.from_list([torch.randn(30, 12).bfloat16()], [1])
    for number in range(3):
        ours, theirs = (step(bags, Draws(0, number), progress=0.0, num_bags=1) for step in (compiled, plain))
        torch.testing.assert_close(ours.total_B, theirs.total_B, rtol=1e-2, atol=1e-2)


def test_a_run_is_compiled_where_its_settings_say_so(compilations):
    from mhimdist.training.trainer import Trainer

    bags = gaussian_bags()
    config = _config("abmil", MASKED).override({"compile": True, "epochs": 1})
    assert config.digest() == config.override({"compile": False}).digest()
    list(Trainer(config, bags, bags.holdout()).epochs())
    assert compilations.frame_count == 1
