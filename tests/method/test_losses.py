import numpy as np
import pytest
import torch

from mhimdist.method.losses import consistency

pytestmark = pytest.mark.numeric


def test_consistency_is_equation_9_with_the_temperature_on_the_teacher():
    student = torch.tensor([[[1.0, 2.0, 0.5]], [[0.0, 0.0, 1.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[0.1, 0.2, 0.3]], [[1.0, 0.5, 0.0]]], dtype=torch.float64)
    for b in range(2):
        f_s, f_t = student[b, 0].numpy(), teacher[b, 0].numpy()
        target = np.exp(f_t / 0.1) / np.exp(f_t / 0.1).sum()
        expected = -(target * (f_s - np.log(np.exp(f_s).sum()))).sum()
        assert abs(float(consistency(student, teacher, 0.1)[b]) - expected) < 1e-6


def test_several_embeddings_are_averaged():
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    each = torch.stack([consistency(student[:, m : m + 1], teacher[:, m : m + 1], 0.5) for m in range(3)])
    torch.testing.assert_close(consistency(student, teacher, 0.5), each.mean(0))


def test_no_gradient_reaches_the_teacher():
    student = torch.randn(1, 1, 4, requires_grad=True)
    teacher = torch.randn(1, 1, 4, requires_grad=True)
    consistency(student, teacher, 0.1).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
