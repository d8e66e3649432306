"""The consistency loss between student and teacher."""

import torch
from torch import Tensor


def consistency(student_BME: Tensor, teacher_BME: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the student's bag embedding against the teacher's (paper, equation 9), shape B.

    -sum_e softmax(F_t / tau)_e log_softmax(F_s)_e, where the temperature is the teacher's alone, as in the
    authors' code; the mean over M where a bag has several embeddings. No gradient reaches the teacher.

    Args:
        student_BME: B bags, M embeddings of a bag, E wide.
        teacher_BME: the same of the teacher.
        temperature: tau, above 0.
    """
    target_BME = torch.softmax(teacher_BME.detach().float() / temperature, dim=-1)
    return -(target_BME * torch.log_softmax(student_BME.float(), dim=-1)).sum(-1).mean(1)
