"""The exported file: weights of one network as safetensors, and everything said about it in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mhimdist import files
from mhimdist.config.models import ModelSettings
from mhimdist.errors import CheckpointError
from mhimdist.export.load_model import FORMAT, FORMAT_VERSION, ExportError, digest, read_header
from mhimdist.models import BagModel, build
from mhimdist.models.foreign_weights import differences
from mhimdist.prediction.members import Member
from mhimdist.tasks import restored
from mhimdist.training.model_card import Trained, metric_intervals
from mhimdist.training.result import NOTES

LICENCE = (
    "load_model.py is Apache-2.0. No licence of the weights is stated: whoever owns the data that trained "
    "them decides. MHIM-MIL is the method of Tang et al., ICCV 2023."
)


def document(member: Member, trained: Trained) -> dict[str, Any]:
    """What the header says of a network, in JSON types.

    Args:
        member: the network, its threshold and protocol.
        trained: its configuration, data and metrics.
    """
    state, result = trained.state, trained.result
    config = dict(state["config"])
    intervals = metric_intervals([trained])
    found: dict[str, Any] = {"validation": {}, "test": {}, "test_intervals": {}}
    if result is not None:
        found |= {"validation": dict(result.validation), "test": dict(result.test)}
        found |= {"missing_classes": dict(result.missing_classes), "note": result.note}
    how = {"level": 0.95, "how": "percentile bootstrap of the test cases, 1000 resamples"}
    for name, (low, high) in intervals.items():
        found["test_intervals"][name] = {"low": low, "high": high, **how}
    selection = trained.task.selection  # alone, too: earlier exports had no other interval
    found[f"test_{selection}_interval"] = found["test_intervals"].get(selection)
    details = {name: member.features.get(name) for name in ("patch_size", "level", "magnification")}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": trained.name,
        "model": config["model"],
        "num_features": member.num_features,
        "classes": list(member.classes),
        **_of_task(member, trained),
        "encoder": member.features.get("encoder"),
        **({"standardized": scale} if (scale := member.features.get("standardized")) else {}),
        **details,
        "threshold": member.threshold,
        "threshold_from": member.threshold_from,
        "precision": {"weights": "float32", "trained_with": config.get("precision")},
        "training": config,
        "fold": member.fold,
        "seed": member.seed,
        "data": dict(trained.data),
        "protocol": {"name": member.protocol, "says": NOTES.get(member.protocol, "")},
        "metrics": found,
        "versions": dict(state.get("versions") or {}),
        "licence": LICENCE,
    }


def _of_task(member: Member, trained: Trained) -> dict[str, Any]:
    """What else the header says of a task other than classification."""
    if not (record := trained.state.get("task")):
        return {}
    return {"task": record, "columns": list(member.task.columns), "num_outputs": member.task.num_outputs}


def write(path: Path, weights: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write an exported file, whole or not at all.

    Args:
        path: the file; it replaces an older one.
        weights: the network's `state_dict`.
        header: values that JSON can hold.

    Raises:
        DiskFullError: the file does not fit on the disk.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    said = {"mhimdist": json.dumps(header, allow_nan=False)}
    # The digest covers header and weights but not itself, so the file is made twice.
    said["sha256"] = digest(save(tensors, said))
    files.write_bytes(path, save(tensors, said))


def read(path: Path) -> tuple[BagModel, dict[str, Any]]:
    """Read an exported file as a network of ours on the CPU, in evaluation mode, and its header.

    Raises:
        CheckpointError: it is not an export, was changed, or is of another version.
    """
    try:
        header = read_header(path)
        settings: ModelSettings = TypeAdapter(ModelSettings).validate_python(header["model"])
        task = restored(header.get("task"), header["classes"])
        network = build(settings, num_features=header["num_features"], task=task, seed=0)
    except ExportError as error:
        raise CheckpointError(str(error)) from None
    except (ValidationError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: another release wrote it; its model is unknown here: {error}"
        ) from None
    weights = load_file(path)
    if faults := differences(weights, network.state_dict()):
        raise CheckpointError(f"{path}: the weights do not fit {settings.name}: {'; '.join(faults)}")
    network.load_state_dict(weights)
    return network.eval(), header


def is_export(path: Path) -> bool:
    """Whether a file says in its header that it is an export, whole or damaged."""
    try:
        with safe_open(path, "pt") as opened:
            return "mhimdist" in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return path.suffix.lower() == ".safetensors"
