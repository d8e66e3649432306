"""The Triton kernels are right, do not spill on any architecture, and need few launches. No GPU is needed."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from host_waits import host_waits

from mhimdist import ops
from mhimdist.ops.draws import Draws

pytestmark = [pytest.mark.numeric, pytest.mark.kernels]
pytest.importorskip("triton", reason="the tests of the kernels need triton, from the extra dev")

ROOT = Path(__file__).parents[2]


def _compare(environment: dict[str, str]) -> None:
    """Run the comparisons in a separate process: importing triton fixes whether it interprets."""
    files = sorted(map(str, (ROOT / "tests" / "ops").glob("*_against_reference.py")))
    command = [sys.executable, "-m", "pytest", "-x", "-m", "", *files]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": str(ROOT), **environment}
    run = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.long
def test_kernels_under_the_interpreter_agree_with_the_specification():
    _compare({"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
def test_kernels_on_the_device_agree_with_the_specification():
    _compare({})


def _names(launches) -> list[str]:
    return [launch.name for launch in launches]


@pytest.mark.parametrize("num_bags", [1, 64])
def test_launches_do_not_grow_with_the_number_of_bags(num_bags):
    from benchmarks import bag_on_gpu

    for num_heads in (1, 8):
        launches = bag_on_gpu.selection(num_bags=num_bags, num_heads=num_heads)
        assert _names(launches) == ["_find_limits", "_mask", "_gather"]
    assert _names(bag_on_gpu.numbers(num_bags=num_bags)) == ["_number"]
    assert _names(bag_on_gpu.pooling(num_bags=num_bags)) == ["_pool_parts", "_join_parts", "_pool_backward"]
    assert _names(bag_on_gpu.dropout(num_bags=num_bags)) == ["_drop", "_relu_backward"]
    assert _names(bag_on_gpu.ranking(num_bags=num_bags)) == ["_top_k"]
    reducing = bag_on_gpu.reducing(num_bags=num_bags, is_max=True)
    assert _names(reducing) == ["_reduce_parts", "_join_reduced", "_reduce_backward"]


# At the edges of 1 and of 16, on which Triton would specialise, and all over.
BAG_SIZES = [
    *range(1, 19),
    *(16 * n + over for n in (2, 7, 64, 567, 6000) for over in (-1, 0, 1)),
    *range(997, 24_000, 871),
]


def test_bags_of_other_sizes_compile_nothing_anew():
    """One compilation per kernel, dtype and width, whatever the number and the sizes of the bags."""
    from benchmarks import bag_on_gpu
    from benchmarks.ahead_of_time import compiled_for

    assert len(set(BAG_SIZES)) >= 60
    found = {}
    for place, rows in enumerate(BAG_SIZES):
        num_bags = 1 if place % 2 else min(1 + place % 33, rows)
        sizes = {"num_bags": num_bags, "rows": rows}
        launches = {
            "selection": bag_on_gpu.selection(**sizes, capacity=max(rows // 2, 1)),
            "eight heads": bag_on_gpu.selection(**sizes, capacity=rows, num_heads=8),
            "numbers": bag_on_gpu.numbers(num_bags=num_bags),
            "pooling": bag_on_gpu.pooling(**sizes),
            "two columns": bag_on_gpu.pooling(**sizes, columns=2),
            "dropout": bag_on_gpu.dropout(**sizes),
            "dropout alone": bag_on_gpu.dropout(**sizes, relu=False),
            "ranking": bag_on_gpu.ranking(**sizes),
            "mean": bag_on_gpu.reducing(**sizes, is_max=False),
            "max of two columns": bag_on_gpu.reducing(**sizes, columns=2, is_max=True),
            "sequence": bag_on_gpu.along_the_sequence(rows=rows),
            # Its first launch convolves, the second one back.
            **{f"square {place}": [launch] for place, launch in enumerate(bag_on_gpu.square(rows=rows))},
        }
        for what, several in launches.items():
            for launch in several:
                found.setdefault((what, launch.name), set()).add(compiled_for(launch, 90))
    anew = {kernel: keys for kernel, keys in found.items() if len(keys) > 1}
    assert not anew, anew
    assert {name for _, name in found} >= {
        "_find_limits",
        "_gather",
        "_pool_backward",
        "_reduce_backward",
        "_convolve",
    }


def test_the_key_of_a_compilation_knows_what_triton_specialises_on():
    """The assumption of the test above."""
    import triton

    from benchmarks import bag_on_gpu
    from benchmarks.ahead_of_time import Launch, compiled_for

    def keys(kernel, name, numbers):
        launch = next(each for each in bag_on_gpu.dropout() if each.name == "_relu_backward")
        for number in numbers:
            arguments = launch.arguments | {name: number}
            yield compiled_for(Launch(kernel or launch.kernel, launch.grid, arguments, launch.options), 90)

    assert len(set(keys(None, "width", (1, 2, 3, 16, 32)))) == 3
    assert len(set(keys(None, "num_rows", (1, 2, 3, 16, 32)))) == 1
    unnamed = triton.JITFunction(next(iter(bag_on_gpu.dropout()[1:])).kernel.fn)
    assert len(set(keys(unnamed, "num_rows", (1, 2, 3, 16, 32)))) == 3


@pytest.mark.long
@pytest.mark.parametrize(
    "architecture", [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)]
)
def test_nothing_spills(architecture, tmp_path, monkeypatch, record_property):
    """Machine code, compiled ahead of time, states the registers and stack that it takes."""
    from benchmarks import bag_on_gpu
    from benchmarks.ahead_of_time import compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = [
        *bag_on_gpu.selection(),
        # The compiler takes long for eight heads.
        *(bag_on_gpu.selection(num_heads=8)[:2] if architecture == 90 else []),
        *bag_on_gpu.numbers(),
        *bag_on_gpu.pooling(),
        *bag_on_gpu.pooling(columns=2),
        *bag_on_gpu.dropout(),
        *bag_on_gpu.dropout(relu=False),
        *bag_on_gpu.ranking(),
        *bag_on_gpu.reducing(is_max=False),
        *bag_on_gpu.reducing(is_max=True),
        *bag_on_gpu.reducing(columns=2, is_max=True),
        *bag_on_gpu.along_the_sequence(),
        *bag_on_gpu.square(),
    ]
    for launch in launches:
        found = compiled(launch, architecture)
        record_property(f"{launch.name} sm_{architecture}", str(found))
        assert found.stack_bytes == 0, (launch.name, found)
        assert 0 < found.registers * launch.num_warps * 32 <= 65536, (launch.name, found)


def test_sizes_of_masks_are_rounded_as_on_a_cpu(tmp_path, monkeypatch):
    """Each product rounds separately: fused, some sizes would round to another integer."""
    from benchmarks import bag_on_gpu
    from benchmarks.ahead_of_time import built

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (launch,) = bag_on_gpu.numbers()
    code = built(launch, 90).asm["ptx"]
    assert "fma.rn.f64" not in code
    assert {"mul.f64", "mul.rn.f64"} & set(code.split())
    assert "div.rn.f64" in code
    launch.options["enable_fp_fusion"] = True
    assert "fma.rn.f64" in built(launch, 90).asm["ptx"]


def test_the_relu_of_nan_is_nan_in_machine_code(tmp_path, monkeypatch):
    """The plain maximum of a number and NaN is the number on a GPU."""
    from benchmarks import bag_on_gpu
    from benchmarks.ahead_of_time import built

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = built(bag_on_gpu.dropout()[0], 90).asm["ptx"]
    assert "max.NaN.f32" in code
    assert "max.f32" not in code


def test_every_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    """Triton launches on the current device, which need not be the device of the tensors."""
    from contextlib import contextmanager

    from triton.runtime.jit import JITFunction

    from benchmarks import ahead_of_time, bag_on_gpu

    guarded, launches = [], []

    @contextmanager
    def device_of(tensor):
        guarded.append(tensor)
        yield
        guarded.pop()

    @contextmanager
    def noted():
        with ahead_of_time.noted():
            note = JITFunction.run

            def note_the_guard(kernel, *args, **kwargs):
                launches.append((kernel.__name__, len(guarded)))
                return note(kernel, *args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(JITFunction, "run", note_the_guard)
                yield []

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(bag_on_gpu, "noted", noted)
    for work in (bag_on_gpu.selection, bag_on_gpu.numbers, bag_on_gpu.pooling, bag_on_gpu.ranking):
        work()
    bag_on_gpu.dropout()
    bag_on_gpu.reducing(is_max=True)
    bag_on_gpu.along_the_sequence()
    bag_on_gpu.square()
    names = ["_find_limits", "_mask", "_gather", "_number", "_pool_parts", "_join_parts", "_pool_backward"]
    names += ["_top_k", "_drop", "_relu_backward", "_reduce_parts", "_join_reduced", "_reduce_backward"]
    names += ["_convolve", "_kernel_gradient", "_convolve", "_convolve", "_kernel_gradient"]
    assert launches == [(name, 1) for name in names]
    assert guarded == []


def _forward() -> tuple[torch.Tensor, torch.Tensor]:
    """Run selection, dropout, pooling and ranking on the default device, with tensors without values."""
    offsets_B1, each_B = torch.empty(3, dtype=torch.int64), torch.empty(2, dtype=torch.int64)
    gathered = ops.select_and_gather(
        torch.empty(100, 8, dtype=torch.float16),
        torch.empty(100, 3),
        offsets_B1,
        ops.MaskCounts(each_B, each_B, each_B, each_B),
        ops.MaskKeys(each_B, each_B, each_B),
        capacity=70,
        dtype=torch.bfloat16,
    )
    assert gathered.features_KD.shape == (70, 8)
    assert gathered.features_KD.dtype == torch.bfloat16
    assert gathered.kept_K.shape == (70,)
    values_KE = gathered.features_KD.float().requires_grad_()
    dropped_KE = ops.relu_dropout(values_KE, 0.25, gathered.offsets_B1, each_B)
    dropped_KE = ops.keyed_dropout(dropped_KE, 0.25, gathered.offsets_B1, each_B)
    assert ops.segment_argmax(dropped_KE, gathered.offsets_B1).shape == (2, 8)
    return values_KE, ops.segment_softmax_pool(dropped_KE.narrow(1, 0, 2), dropped_KE, gathered.offsets_B1)


def test_the_way_of_cuda_has_no_size_that_depends_on_data():
    """Fake CUDA tensors raise when a value, or a size that depends on one, is read."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        _, pooled_BCE = _forward()
    assert pooled_BCE.device.type == "cuda"
    assert pooled_BCE.shape == (2, 2, 8)


def test_the_gradient_on_the_way_of_cuda_has_no_size_that_depends_on_data():
    """Without CUDA, autograd accepts no fake CUDA tensor; the meta device takes the same path."""
    with torch.device("meta"):
        values_KE, pooled_BCE = _forward()
        pooled_BCE.sum().backward()
    assert values_KE.grad.shape == (70, 8)
    assert values_KE.grad.device.type == "meta"


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    offsets_B1 = torch.tensor([0, 40, 100], device="cuda")
    each_B = torch.ones(2, dtype=torch.int64, device="cuda")
    keys_B = Draws(0, 0).keys(torch.arange(2), "high_mask").cuda()
    features_TD = torch.randn(100, 8, device="cuda")
    counts, keys = ops.MaskCounts(each_B, each_B, each_B, each_B), ops.MaskKeys(keys_B, keys_B, keys_B)
    for watch in (nullcontext, host_waits):  # the first pass compiles
        with watch() as waits:
            gathered = ops.select_and_gather(
                features_TD, features_TD[:, :3], offsets_B1, counts, keys, capacity=100
            )
            values_KE = gathered.features_KD.requires_grad_()
            dropped_KE = ops.relu_dropout(values_KE, 0.25, gathered.offsets_B1, each_B)
            ops.segment_softmax_pool(dropped_KE[:, :1], dropped_KE, gathered.offsets_B1).sum().backward()
    assert waits == {}
    num_kept = int(gathered.offsets_B1[-1])
    assert 94 <= num_kept < 100
    assert not values_KE.grad[num_kept:].any()
