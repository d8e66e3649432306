"""The convolution of a bag laid out as a square, without a host that knows the bag's size.

Dimensions: T rows, the instances of a bag and padding after them, E width, J and I height and width of the
kernel.
"""

from torch import Tensor


def square_convolution(tokens_TE: Tensor, kernel_EJI: Tensor, bias_E: Tensor, offsets_2: Tensor) -> Tensor:
    """The instances plus their depth-wise 7 x 7 convolution in a square, T x E; `reference` specifies it.

    For a GPU only: on the CPU TransMIL knows the size, and works on parts of the square. Sums and the
    gradients of kernel and bias are in float32, and the same from run to run.

    Args:
        tokens_TE: the instances of one bag; rows after them are padding, are not read and become zero.
        kernel_EJI: one 7 x 7 kernel per column.
        bias_E: added to each instance.
        offsets_2: int64, 0 and the number of instances.

    Raises:
        TypeError: tokens, kernel or bias are not in float32, fp16 or bf16.
    """
    from mhimdist.ops import _square

    return _square.square_convolution(tokens_TE, kernel_EJI.flatten(1).T, bias_E, offsets_2)
