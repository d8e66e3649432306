"""The consistency loss between student and teacher."""

import torch
from torch import Tensor


def consistency(student_BME: Tensor, teacher_BME: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the student's bag embedding against the teacher's (paper, equation 9), shape B.

    -sum_e softmax(F_t / tau)_e log_softmax(F_s)_e: the temperature divides only the teacher's embedding, as
    in the authors' code. For several embeddings per bag this is the mean over M. No gradient reaches the
    teacher.

    Args:
        student_BME: the student's embeddings: B bags, M embeddings per bag, E wide.
        teacher_BME: the teacher's embeddings, in the same shape.
        temperature: tau, above 0.
    """
    target_BME = torch.softmax(teacher_BME.detach().float() / temperature, dim=-1)
    return -(target_BME * torch.log_softmax(student_BME.float(), dim=-1)).sum(-1).mean(1)
