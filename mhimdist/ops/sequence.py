"""The convolution of tokens along their sequence, without transposing them.

Dimensions: T rows, E width, J taps of the kernel.
"""

from torch import Tensor


def sequence_convolution(values_TE: Tensor, kernel_EJ: Tensor) -> Tensor:
    """The depth-wise convolution of the rows, zero before the first and after the last, T x E.

    For a GPU only; `reference` specifies it. Sums and the kernel's gradient are in float32, and the same from
    run to run.

    Args:
        values_TE: the rows.
        kernel_EJ: an odd number of taps per column.

    Raises:
        TypeError: values or kernel are not in float32, fp16 or bf16.
    """
    from mhimdist.ops import _sequence

    return _sequence.sequence_convolution(values_TE, kernel_EJ.T)
