"""Networks of every model, exported, and processes that lack the packages which an export must not need."""

import subprocess
import sys
from pathlib import Path

import torch

from mhimdist.config import models as model_settings
from mhimdist.data.bags import PackedBags
from mhimdist.export import load_model, weights_file
from mhimdist.models import BagModel, build

NUM_FEATURES = 24
SMALL = {"hidden_dim": 32}
SETTINGS: dict[str, model_settings.ModelSettings] = {
    "max_pooling": model_settings.Pooling(name="max_pooling", **SMALL),
    "mean_pooling": model_settings.Pooling(**SMALL),
    "abmil": model_settings.AttentionMIL(**SMALL),
    "gated": model_settings.AttentionMIL(gated=True, activation="tanh", **SMALL),
    "dsmil": model_settings.DSMIL(**SMALL),
    "transmil": model_settings.TransMIL(num_heads=4, num_landmarks=16, **SMALL),
    "transmil-1": model_settings.TransMIL(num_heads=2, num_landmarks=10, score_layer=1, **SMALL),
    "clam_sb": model_settings.CLAM(**SMALL),
    "clam_mb": model_settings.CLAM(name="clam_mb", **SMALL),
    "dtfd-AFS": model_settings.DTFD(**SMALL),
    "dtfd-MaxS": model_settings.DTFD(distillation="MaxS", **SMALL),
    "dtfd-MaxMinS": model_settings.DTFD(distillation="MaxMinS", num_pseudo_bags=3, **SMALL),
}
SIZES = (1, 2, 50, 3000)


def network_of(name: str, num_classes: int = 2) -> BagModel:
    return build(SETTINGS[name], num_features=NUM_FEATURES, num_classes=num_classes, seed=5).eval()


def header_of(name: str, num_classes: int = 2, **more: object) -> dict[str, object]:
    return {
        "format": load_model.FORMAT,
        "format_version": load_model.FORMAT_VERSION,
        "model": SETTINGS[name].model_dump(mode="json"),
        "num_features": NUM_FEATURES,
        "classes": [f"class-{i}" for i in range(num_classes)],
        "encoder": "resnet50",
        **more,
    }


def features_of(size: int) -> torch.Tensor:
    return torch.randn(size, NUM_FEATURES, generator=torch.Generator().manual_seed(size))


@torch.inference_mode()
def expected(network: BagModel, features_ND: torch.Tensor, key: str) -> torch.Tensor:
    """The probabilities of our own evaluation."""
    return network.predictions(network(PackedBags.from_list([features_ND], keys=[key])))[0]


def write(folder: Path, name: str, **more: object) -> Path:
    path = folder / f"{name}.safetensors"
    weights_file.write(path, network_of(name).state_dict(), header_of(name, **more))
    return path


BLOCKER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED and name.split(".")[0] not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_with_only(allowed: set[str], code: str, folder: Path) -> str:
    """Run code in a process that can import the standard library and the `allowed` packages alone."""
    program = f"ALLOWED = {allowed!r}\n{BLOCKER}\n{code}"
    # torch warns once, when it is imported, that it found no numpy.
    numpy_warning = "ignore:Failed to initialize NumPy"
    command = [sys.executable, "-I", "-W", "error", "-W", numpy_warning, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
