"""A network as an ONNX file for bags of any size, compared with PyTorch before it is kept.

Every model exports: what depends on the number of instances, such as TransMIL's padding and its square of
tokens, is computed in the graph. DTFD-MIL has a second input, the key of its cut.

Dimensions: N instances of a bag, D features, C classes, H heads.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mhimdist import files
from mhimdist.errors import ConfigError, ExportMismatchError
from mhimdist.export import load_task
from mhimdist.export.load_model import DTFD, PoolingMIL, build, cut_key

OPSET = 18
SIZES = (1, 2, 5, 50, 300, 1111)
"""Bags that are compared: a single instance, fewer than any landmarks or square, and odd sizes."""
TOLERANCE = 1e-5
"""Largest difference of a probability between ONNX Runtime and PyTorch."""


def write(path: Path, weights: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a network as ONNX, with the header in the file's metadata.

    Inputs: `features`, float32 N x D, and for DTFD-MIL `key`, an int64 without dimensions. Outputs:
    `probabilities`, float32 C, and, but for max- and mean-pooling, `attention`, float32 N x H. Of tasks with
    targets the first is called `predictions`; numbers are float64.

    Args:
        path: the file; it replaces an older one, and appears only if the two agree.
        weights: the network's `state_dict`.
        header: what the exported file says.

    Raises:
        ConfigError: the packages of the extra `onnx` are not installed.
        ExportMismatchError: ONNX Runtime does not give PyTorch's probabilities; the message says for which
            number of instances, and by how much.
        DiskFullError: the file does not fit on the disk.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not importlib.util.find_spec(name)]
    if missing:
        raise ConfigError(
            f"onnx: expected the packages of the extra onnx, {', '.join(missing)} is not installed: "
            "pip install 'mhimdist[onnx]'"
        )
    network = _network(weights, header)
    content = _exported(network, header)
    compare(content, network, header["num_features"], path, header)
    files.write_bytes(path, content)


def _network(weights: Mapping[str, Tensor], header: Mapping[str, Any]) -> nn.Module:
    network = build(dict(header))
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def _inputs(network: nn.Module, features_ND: Tensor) -> dict[str, Tensor]:
    key = {"key": cut_key(f"bag of {len(features_ND)}")} if isinstance(network, DTFD) else {}
    return {"features": features_ND, **key}


def _output(header: Mapping[str, Any]) -> str:
    """The name of what a network says of a bag."""
    of_classes = "task" not in header or not header["task"]["info"]["columns"]
    return "probabilities" if of_classes else "predictions"


def _exported(network: nn.Module, header: Mapping[str, Any]) -> bytes:
    inputs = _inputs(network, torch.zeros(50, header["num_features"]))
    outputs = [_output(header)] if isinstance(network, PoolingMIL) else [_output(header), "attention"]
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            # Of torch about itself: its exporter calls what its own pytree has deprecated.
            warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
            program = torch.onnx.export(
                network,
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N", min=1)}, *[None] * (len(inputs) - 1)),
                input_names=list(inputs),
                output_names=outputs,
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None, "torch.onnx.export with dynamo returns a program"
    model = program.model_proto
    properties = {"mhimdist": json.dumps(header), "opset": str(OPSET)}
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def compare(
    content: bytes,
    network: nn.Module,
    num_features: int,
    path: Path,
    header: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Compare a model of ONNX with its network in PyTorch, for bags of `SIZES`.

    Args:
        content: the model of ONNX.
        network: one of `load_model.NETWORKS`.
        num_features: width of the features.
        path: the file that the message names.
        header: what the exported file says.

    Raises:
        ExportMismatchError: a probability differs by more than `TOLERANCE`; or another prediction, in
            deviations of numbers, or as a share of its own size if that is above 1.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        inputs = _inputs(network, torch.randn(size, num_features, generator=generator))
        with torch.inference_mode():
            expected_C = network(*inputs.values())[0]
        found = session.run([_output(header)], {name: value.numpy() for name, value in inputs.items()})
        units_C = load_task.scale(dict(header)).maximum(expected_C.abs()) if "task" in header else 1.0
        difference = float(((torch.from_numpy(found[0]) - expected_C).abs() / units_C).max())
        if not difference <= TOLERANCE:
            raise ExportMismatchError(
                f"{path}: for a bag of {size} instances, expected {_output(header)} within {TOLERANCE:g} of "
                f"PyTorch's, got a difference of {difference:.2g}; the file is not written"
            )
