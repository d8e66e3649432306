"""The authors' outputs, and the parameters and bags they were computed on (see golden/README.md)."""

import json
import math
from pathlib import Path

import numpy as np
import torch

from mhimdist.data.bags import PackedBags
from mhimdist.models import BagModel

FOLDER = Path(__file__).parent / "golden"
FACTS = json.loads((FOLDER / "golden.json").read_text())
ARRAYS = dict(np.load(FOLDER / "golden.npz"))

_SHARED = {
    "patch_to_emb.0.weight": "projection.linear.weight",
    "patch_to_emb.0.bias": "projection.linear.bias",
    "predictor.weight": "head.weight",
    "predictor.bias": "head.bias",
}
OUR_NAMES = {
    "attn": {
        **_SHARED,
        "online_encoder.attention.attention.0.weight": "attention.branch.weight",
        "online_encoder.attention.attention.2.weight": "attention.score.weight",
    },
    "attn_gated": {
        **_SHARED,
        "online_encoder.attention.attention_a.0.weight": "attention.branch.weight",
        "online_encoder.attention.attention_b.0.weight": "attention.gate.weight",
        "online_encoder.attention.attention_c.weight": "attention.score.weight",
    },
}


def fill(network: BagModel, baseline: str, base_seed: int) -> None:
    """Give a network the formula's parameters, number i of the authors' list from seed base_seed + i."""
    weights = {}
    for i, (name, shape) in enumerate(FACTS[baseline]["parameters"]):
        z = np.random.RandomState(base_seed + i).standard_normal(shape).astype(np.float32)
        scale = 0.1 if name.endswith("bias") else 1 / math.sqrt(math.prod(shape[1:]))
        weights[OUR_NAMES[baseline][name]] = torch.from_numpy((z * np.float32(scale)).astype(np.float32))
    network.load_state_dict(weights)


def bag(num_instances: int, seed: int, label: int = 0) -> PackedBags:
    """The formula's bag of N x 1024."""
    z = np.random.RandomState(seed).standard_exponential((1, num_instances, 1024)).astype(np.float32) * 0.5
    return PackedBags.from_list([torch.from_numpy(z[0].astype(np.float32))], [label], [f"golden-{seed}"])


def sizes(baseline: str) -> list[int]:
    """The bag sizes with golden forward values."""
    found = {key.split("/")[1] for key in ARRAYS if key.startswith(f"{baseline}/n")}
    return sorted(int(name[1:]) for name in found)
