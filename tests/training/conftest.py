import os

import pytest
from as_on_a_gpu import AsOnAGpu, kernels_as_specified

from mhimdist.training import graphed_step

SMALLEST = 16  # in place of 128, so that small bags will do


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A GPU, or a CPU that takes a GPU's code path, on which small steps are recorded, too."""
    monkeypatch.setattr(graphed_step, "SMALLEST_STEP", SMALLEST)
    if request.param == "cuda":
        yield "cuda"
        return
    pytest.importorskip("triton", reason="the kernels' operators need triton, from the extra dev")
    if os.environ.get("TRITON_INTERPRET") != "1":
        for operator, kernel in kernels_as_specified().items():
            monkeypatch.setitem(operator._backend_fns, None, kernel)
    with AsOnAGpu():
        yield "cpu"
