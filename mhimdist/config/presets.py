"""The authors' settings for each data set and model (`preset("c16", "abmil")`).

They come from the authors' released scripts: Adam with 2e-4, 200 epochs, one bag per step, temperature 0.1,
a high ratio that decays along a cosine, and a teacher pre-trained on the same fold.
"""

from collections.abc import Mapping
from typing import Any

from mhimdist.config.nearest import did_you_mean
from mhimdist.config.train import TrainConfig, load_config
from mhimdist.errors import ConfigError


def _mhim(
    *, alpha: float, high: float, pool_share: float, low: float, random: float, momentum_kind: str
) -> dict[str, Any]:
    return {
        "masking": {
            "high": {"start": high, "kind": "cosine"},
            "high_pool_share": pool_share,
            "low": {"start": low},
            "random": {"start": random},
        },
        "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9999, "kind": momentum_kind}},
        "loss": {"alpha": alpha, "temperature": 0.1},
    }


_C16_STOP = {"patience": 30, "from_epoch": 130}
_TCGA_STOP = {"patience": 20, "from_epoch": 70}
_C16 = {
    "early_stopping": _C16_STOP,
    **_mhim(alpha=0.1, high=0.01, pool_share=0.5, low=0.0, random=0.5, momentum_kind="constant"),
}
_TCGA = {
    "early_stopping": _TCGA_STOP,
    **_mhim(alpha=0.5, high=0.02, pool_share=1.0, low=0.2, random=0.7, momentum_kind="cosine"),
}
_BASELINE = {"teacher": {"kind": "none"}, "loss": {"alpha": 0}}
# The models without masking, and how each departs from the authors' usual optimiser.
_BASELINES: dict[str, dict[str, Any]] = {
    "max_pooling": {},
    "mean_pooling": {},
    "clam_sb": {},
    "clam_mb": {},
    "dtfd": {"optimizer": {"learning_rate": 1e-4, "weight_decay": 1e-4, "decay": "step", "clip_norm": 5.0}},
}

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("c16", "abmil"): {"model": {"name": "abmil"}, **_C16},
    ("c16", "dsmil"): {"model": {"name": "dsmil"}, **_C16},
    ("c16", "transmil"): {
        "model": {"name": "transmil"},
        "early_stopping": _C16_STOP,
        **_mhim(alpha=0.1, high=0.03, pool_share=0.5, low=0.8, random=0.0, momentum_kind="cosine"),
    },
    ("tcga", "abmil"): {"model": {"name": "abmil", "gated": True}, **_TCGA},
    ("tcga", "dsmil"): {"model": {"name": "dsmil"}, **_TCGA},
    ("tcga", "transmil"): {
        "model": {"name": "transmil"},
        "early_stopping": _TCGA_STOP,
        **_mhim(alpha=0.5, high=0.02, pool_share=1.0, low=0.2, random=0.6, momentum_kind="constant"),
    },
    **{
        (dataset, name): {"model": {"name": name}, "early_stopping": stop, **_BASELINE, **changes}
        for dataset, stop in (("c16", _C16_STOP), ("tcga", _TCGA_STOP))
        for name, changes in _BASELINES.items()
    },
}
for _name in ("clam_sb", "clam_mb"):  # TCGA's classes are subtypes, for which CLAM's authors cluster this way
    PRESETS["tcga", _name]["model"]["subtyping"] = True


PAPER_FOLDS: Mapping[str, Mapping[str, Any]] = {
    "c16": {"folds": 3, "seeds": (2021, 2022, 2023), "validation_share": 0.15},
    "tcga": {"folds": 4, "seeds": (2021,), "validation_share": 0.13, "paper_validation_share": 0.13},
}
"""How the authors split each data set; the shares are of the cases that do not test."""


def preset(dataset: str, model: str) -> TrainConfig:
    """The authors' settings of `model` for `dataset` ("c16" or "tcga").

    AB-MIL, DSMIL and TransMIL are trained with MHIM; `preset(...).first_stage()` trains them without it.

    Raises:
        ConfigError: this preset does not exist; the message lists those that do.

    Example:
        >>> config = mh.preset("c16", "abmil")
        >>> config.teacher.kind, config.loss.alpha
        ('init_momentum', 0.1)
        >>> config.first_stage().teacher.kind
        'none'
    """
    if (dataset, model) not in PRESETS:
        known = ", ".join(f"({d}, {m})" for d, m in PRESETS)
        near = did_you_mean(model, [name for each, name in PRESETS if each == dataset])
        raise ConfigError(f"no preset ({dataset}, {model}){near}; valid: {known}")
    return load_config(PRESETS[dataset, model])


def digits_preset(dataset: str, model: str) -> TrainConfig:
    """The authors' settings sized for the embedded digits, whose bags are 1/20 of a slide's.

    Raises:
        ConfigError: as in `preset`.
    """
    sizes: dict[str, Any] = {"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4, "epochs": 25}
    if model == "transmil":
        sizes["model.num_landmarks"] = 32
    return preset(dataset, model).override(sizes)


def departures(config: TrainConfig) -> str:
    """Width and learning rate in words if they differ from the authors'; otherwise empty.

    Meant for the tables of a job that sizes its network for its data; those show epochs and folds anyway.
    """
    theirs = preset("c16", config.model.name)  # the presets of other data sets have the same two values
    pairs = (
        ("width", config.model.hidden_dim, theirs.model.hidden_dim),
        ("learning rate", config.optimizer.learning_rate, theirs.optimizer.learning_rate),
    )
    return ", ".join(f"{what} {ours:g} (the authors' {own:g})" for what, ours, own in pairs if ours != own)
