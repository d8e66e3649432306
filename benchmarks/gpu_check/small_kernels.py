"""Every kernel once on small ragged bags, forward and backward; compute-sanitizer watches it.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, D features, H heads, S streams.
"""

import torch

from mhimdist import ops
from mhimdist.ops.draws import Draws

_SIZES = [1, 2047, 2100]


def launch(device: str) -> None:
    """Run the kernels, with one head of scores and with three."""
    offsets_B1 = torch.tensor([0, *_SIZES]).cumsum(0).to(device)
    ids_B = torch.arange(len(_SIZES)).to(device)
    ratios_4 = torch.tensor([0.1, 0.5, 0.1, 0.4], dtype=torch.float64).to(device)
    streams_S = torch.tensor([Draws(0, 0).stream(purpose) for purpose in ops.STREAMS]).to(device)
    numbers = ops.bag_numbers(offsets_B1, ids_B, ratios_4, streams_S)
    total = sum(_SIZES)
    for num_heads in (1, 3):
        features_TD, scores_TH = torch.rand(total, 40).to(device), torch.rand(total, num_heads).to(device)
        found = ops.select_and_gather(
            features_TD, scores_TH, offsets_B1, numbers.counts, numbers.keys, capacity=total
        )
        features_KD = found.features_KD.requires_grad_()
        hidden_KD = ops.relu_dropout(features_KD, 0.25, found.offsets_B1, numbers.student_dropout_B)
        scores_KC = hidden_KD[:, :2]
        pooled = ops.segment_softmax_pool(scores_KC.float(), hidden_KD, found.offsets_B1)
        (pooled.sum() + ops.segment_mean(hidden_KD, found.offsets_B1).sum()).backward()
        ops.segment_max(hidden_KD.detach(), found.offsets_B1)
        ops.segment_top_k(scores_KC.detach().contiguous(), 4, found.offsets_B1)
        assert features_KD.grad is not None
        assert bool(features_KD.grad.isfinite().all())


if __name__ == "__main__":
    launch("cuda")
    torch.cuda.synchronize()
