import pytest
import torch
from memory_bags import gaussian_bags

from mhimdist.config.train import load_config
from mhimdist.method.precision import tensor_float32
from mhimdist.training.trainer import Trainer

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize(("allowed", "inside"), [(True, "high"), (False, "highest")])
def test_the_switch_holds_inside_and_what_was_set_before_afterwards(allowed, inside, before):
    at_first = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        with tensor_float32(allowed):
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(at_first)


@pytest.mark.parametrize(("tf32", "expected"), [(True, "high"), (False, "highest")])
def test_a_run_trains_and_validates_by_its_setting(tf32, expected):
    config = load_config(
        {
            "model": {"name": "abmil", "hidden_dim": 8},
            "masking": {"random": 0.3},
            "teacher": {"kind": "momentum"},
            "epochs": 1,
            "device": "cpu",
            "tf32": tf32,
        }
    )
    bags, found = gaussian_bags(), set()
    trainer = Trainer(config, bags, bags.holdout())
    trainer.student.register_forward_pre_hook(lambda *_: found.add(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    list(trainer.epochs())
    assert found == {expected}
    assert torch.get_float32_matmul_precision() == before
