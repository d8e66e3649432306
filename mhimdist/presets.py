"""The authors' settings for each data set and model (`preset("c16", "abmil")`).

From their released scripts: Adam 2e-4, 200 epochs, one bag a step, temperature 0.1, the high ratio
decayed along a cosine, the teacher from the fold's own pre-training.
"""

from typing import Any

from mhimdist.config import TrainConfig, load_config
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

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("c16", "abmil"): {
        "model": {"name": "abmil"},
        "early_stopping": _C16_STOP,
        **_mhim(alpha=0.1, high=0.01, pool_share=0.5, low=0.0, random=0.5, momentum_kind="constant"),
    },
    ("tcga", "abmil"): {
        "model": {"name": "abmil", "gated": True},
        "early_stopping": _TCGA_STOP,
        **_mhim(alpha=0.5, high=0.02, pool_share=1.0, low=0.2, random=0.7, momentum_kind="cosine"),
    },
}


def preset(dataset: str, model: str) -> TrainConfig:
    """The authors' settings of MHIM on `model` for `dataset` ("c16" or "tcga").

    Raises:
        ConfigError: there is no such preset; the message lists those there are.
    """
    if (dataset, model) not in PRESETS:
        known = ", ".join(f"({d}, {m})" for d, m in PRESETS)
        raise ConfigError(f"no preset ({dataset}, {model}); there are {known}")
    return load_config(PRESETS[dataset, model])
