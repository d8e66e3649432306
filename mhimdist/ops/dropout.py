"""Dropout whose pattern belongs to the bag, alone or in one pass with the ReLU before it.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, E embedding width.
"""

import torch
from torch import Tensor

from mhimdist.ops import _dropout_cpu
from mhimdist.ops.draws import mix


def keyed_dropout(
    values_TE: Tensor, share: float, offsets_B1: Tensor, keys_B: Tensor | None, site: int = 0
) -> Tensor:
    """Dropout whose pattern is a function of the bag's key, the instance's place and the column.

    One random byte decides each value, so the share is rounded to 1/256; kept values are divided by the
    share that is kept after rounding. Without keys nothing is dropped. The backward pass makes the same bytes
    again.

    Args:
        values_TE: packed instances; rows after the last bag are padding and become zero.
        share: share dropped, in [0, 1).
        offsets_B1: int64 offsets of the bags.
        keys_B: int64 keys of the bags' streams; None for no dropout.
        site: distinguishes the dropout layers of one model.

    Raises:
        TypeError: values on CUDA are not in float32, fp16 or bf16.
    """
    threshold = round(share * 256)
    if keys_B is None or threshold == 0:
        return values_TE
    if values_TE.device.type != "cpu":
        from mhimdist.ops import _dropout

        return _dropout.keyed_dropout(values_TE, threshold, offsets_B1, keys_B, site, False)
    return _dropout_cpu.KeyedDropout.apply(values_TE, threshold, offsets_B1, mix(keys_B + site))


def relu_dropout(
    values_TE: Tensor,
    share: float,
    offsets_B1: Tensor,
    keys_B: Tensor | None,
    site: int = 0,
    *,
    inplace: bool = False,
) -> Tensor:
    """`keyed_dropout(relu(values))` in one pass; the backward pass needs only the result.

    Args:
        values_TE, share, offsets_B1, keys_B, site: see `keyed_dropout`.
        inplace: let the result overwrite the values, as it always does on the CPU; for values that nothing
            else needs, such as the output of a linear layer.

    Raises:
        TypeError: values on CUDA are not in float32, fp16 or bf16.
    """
    threshold = round(share * 256)
    if keys_B is None or threshold == 0:
        return torch.relu_(values_TE) if inplace else torch.relu(values_TE)
    if values_TE.device.type != "cpu":
        from mhimdist.ops import _dropout

        return _dropout.keyed_dropout(values_TE, threshold, offsets_B1, keys_B, site, True)
    return _dropout_cpu.ReluDropout.apply(values_TE, threshold, offsets_B1, mix(keys_B + site), inplace)


def relu_dropout_block(
    values_RE: Tensor, share: float, offsets_B1: Tensor, keys_B: Tensor | None, start: int, out_RE: Tensor
) -> None:
    """`relu_dropout` of some rows, on the CPU and without gradient, for work that goes block by block.

    Args:
        values_RE: consecutive rows of the packed instances, from row `start` on.
        share, offsets_B1, keys_B: see `keyed_dropout`.
        start: number of the first row.
        out_RE: receives the result; may be `values_RE` itself.
    """
    threshold = round(share * 256)
    if keys_B is None or threshold == 0:
        torch.clamp_min(values_RE, 0, out=out_RE)
    else:
        _dropout_cpu.relu_drop(values_RE, threshold, offsets_B1, mix(keys_B), start, out_RE)
