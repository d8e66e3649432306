"""The authors' outputs, and the parameters and bags that they come from (see golden/README.md)."""

import json
import math
from pathlib import Path

import numpy as np
import torch

from mhimdist.data.bags import PackedBags
from mhimdist.models import BagModel, official

FOLDER = Path(__file__).parent / "golden"
FACTS = json.loads((FOLDER / "golden.json").read_text())
ARRAYS = dict(np.load(FOLDER / "golden.npz"))


def fill(network: BagModel, baseline: str, base_seed: int) -> None:
    """Load the formula's parameters into a network; number i of the authors' list has seed base_seed + i."""
    network.load_state_dict(official.translate(official_weights(baseline, base_seed), baseline))


def official_weights(baseline: str, base_seed: int) -> dict[str, torch.Tensor]:
    """The formula's parameters by the authors' names."""
    weights = {}
    for i, (name, shape) in enumerate(FACTS[baseline]["parameters"]):
        z = np.random.RandomState(base_seed + i).standard_normal(shape).astype(np.float32)
        is_norm = ".norm." in name or name.startswith("online_encoder.norm")
        if is_norm or name.endswith("bias"):
            value = np.float32(0.1) * z + np.float32(is_norm and name.endswith("weight"))
        elif name.endswith("cls_token"):
            value = z
        else:
            value = z * np.float32(1 / math.sqrt(math.prod(shape[1:])))
        weights[name] = torch.from_numpy(value.astype(np.float32))
    return weights


def bag(num_instances: int, seed: int, label: int = 0) -> PackedBags:
    """The formula's bag of N x 1024."""
    z = np.random.RandomState(seed).standard_exponential((1, num_instances, 1024)).astype(np.float32) * 0.5
    return PackedBags.from_list([torch.from_numpy(z[0].astype(np.float32))], [label], [f"golden-{seed}"])


def sizes(baseline: str) -> list[int]:
    """The bag sizes with golden forward values."""
    found = {key.split("/")[1] for key in ARRAYS if key.startswith(f"{baseline}/n")}
    return sorted(int(name[1:]) for name in found)
