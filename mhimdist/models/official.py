"""The checkpoints that the authors of MHIM-MIL released, read as weights of our networks.

A released file holds `{"model": weights, "teacher": weights}` or the weights alone. Files of other people are
read as well, see `foreign_weights`: in other wrappings, with prefixes, by the authors' names or by ours. Only
tensors and plain containers are unpickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mhimdist.config import models as model_settings
from mhimdist.errors import CheckpointError, ConfigError
from mhimdist.models import build
from mhimdist.models.foreign_weights import differences, read_tensors, without_prefix

_PROJECTION = {
    "patch_to_emb.0.weight": "projection.linear.weight",
    "patch_to_emb.0.bias": "projection.linear.bias",
}
_HEAD = {"predictor.weight": "head.weight", "predictor.bias": "head.bias"}
_LAYER = {
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "attn.to_qkv.weight": "attention.qkv.weight",
    "attn.to_out.0.weight": "attention.output.weight",
    "attn.to_out.0.bias": "attention.output.bias",
    "attn.res_conv.weight": "attention.residual.weight",
}
_CLASS_TOKEN = "online_encoder.cls_token"

OUR_NAMES: dict[str, dict[str, str]] = {
    "attn": {
        **_PROJECTION,
        **_HEAD,
        "online_encoder.attention.attention.0.weight": "attention.branch.weight",
        "online_encoder.attention.attention.2.weight": "attention.score.weight",
    },
    "attn_gated": {
        **_PROJECTION,
        **_HEAD,
        "online_encoder.attention.attention_a.0.weight": "attention.branch.weight",
        "online_encoder.attention.attention_b.0.weight": "attention.gate.weight",
        "online_encoder.attention.attention_c.weight": "attention.score.weight",
    },
    "selfattn": {
        **_PROJECTION,
        **_HEAD,
        _CLASS_TOKEN: "class_token",
        **{
            f"online_encoder.{layer}.{theirs}": f"{layer}.{ours}"
            for layer in ("layer1", "layer2")
            for theirs, ours in _LAYER.items()
        },
        **{
            f"online_encoder.pos_embedding.{theirs}.{kind}": f"position.{ours}.{kind}"
            for theirs, ours in (("proj", "conv7"), ("proj1", "conv5"), ("proj2", "conv3"))
            for kind in ("weight", "bias")
        },
        "online_encoder.norm.weight": "norm.weight",
        "online_encoder.norm.bias": "norm.bias",
    },
    "dsmil": {
        **_PROJECTION,
        **{
            f"online_encoder.{theirs}.{kind}": f"{ours}.{kind}"
            for theirs, ours in (
                ("i_classifier.0", "instance_head"),
                ("b_classifier.q.0", "query.0"),
                ("b_classifier.q.2", "query.2"),
                ("b_classifier.v.1", "value"),
                ("b_classifier.fcc", "head"),
            )
            for kind in ("weight", "bias")
        },
    },
}
"""The parameters' names per baseline of the authors: theirs, and ours."""

# DSMIL classifies inside its encoder: the authors' predictor after it never gets a gradient.
UNUSED_NAMES = {"dsmil": set(_HEAD)}

_MODELS = {
    "attn": "abmil without model.gated",
    "attn_gated": "abmil with model.gated",
    "selfattn": "transmil",
    "dsmil": "dsmil",
}
"""Per baseline, the settings that build it."""


def load_official(
    path: Path, settings: model_settings.ModelSettings, which: Literal["model", "teacher"] = "model"
) -> dict[str, Tensor]:
    """Read the weights of a released checkpoint, for `load_state_dict` of the model in `settings`.

    Denormal weights, 8 to 47 % of the released ones, become zero: they count for nothing, and a product with
    one is 30 times slower on x86.

    Args:
        path: the file, of torch or safetensors.
        settings: settings of AB-MIL (gated for their TCGA runs), TransMIL or DSMIL, with the file's widths.
        which: the student ("model"), or the teacher if the file has one.

    Returns:
        Float32 tensors by our names; the input width and the number of classes are the file's.

    Raises:
        CheckpointError: the file cannot be read, belongs to another model, or lacks the weights of `which`;
            the message lists the parameters that do not match, and the model that they are of if it is one.
        ConfigError: the authors released no checkpoint of this model.
    """
    baseline = _baseline(settings)
    found = read_tensors(path, which)
    theirs, num_theirs = without_prefix(found, OUR_NAMES[baseline])
    ours, num_ours = without_prefix(found, OUR_NAMES[baseline].values())
    weights = translate(theirs if num_theirs >= num_ours else ours, baseline)
    _check(weights, settings, path, found)
    return weights


def recognise(path: Path, which: Literal["model", "teacher"] = "model") -> model_settings.ModelSettings:
    """The settings of the model in a released checkpoint, from the names and shapes of its weights.

    What no weight shows is as in the authors' scripts: the number of TransMIL's landmarks is half its
    width, and AB-MIL's activation is ReLU.

    Args:
        path: the file, of torch or safetensors.
        which: the student ("model"), or the teacher if the file has one.

    Raises:
        CheckpointError: the file cannot be read, or its weights are of no model that the authors released.
    """
    found = read_tensors(path, which)
    for baseline in OUR_NAMES:
        weights = _complete(found, baseline)
        if weights is not None:
            try:
                return _settings_of(translate(weights, baseline), baseline)
            except (IndexError, ValueError) as error:
                raise CheckpointError(
                    f"{path}: the weights of {_MODELS[baseline]} have shapes of no model: {error}"
                ) from None
    listing = ", ".join(sorted(found)[:5])
    raise CheckpointError(
        f"{path}: expected the weights of {', '.join(_MODELS.values())}, got other names ({listing}, ...)"
    )


def _complete(found: Mapping[str, Tensor], baseline: str) -> dict[str, Tensor] | None:
    """The weights in a file without their prefix, if they are all of a baseline's, by either's names."""
    names, unused = OUR_NAMES[baseline], UNUSED_NAMES.get(baseline, set())
    for known, more in ((set(names), unused), (set(names.values()), set[str]())):
        bare, _ = without_prefix(found, known)
        if known <= bare.keys() <= known | more:
            return bare
    return None


def _settings_of(weights: Mapping[str, Tensor], baseline: str) -> model_settings.ModelSettings:
    """Settings with the widths of the weights, which have our names."""
    width = weights["projection.linear.weight"].shape[0]
    match baseline:
        case "selfattn":
            heads = weights["layer1.attention.residual.weight"].shape[0]
            return model_settings.TransMIL(
                hidden_dim=width, num_heads=heads, num_landmarks=max(width // 2, 1)
            )
        case "dsmil":
            return model_settings.DSMIL(hidden_dim=width, query_dim=weights["query.0.weight"].shape[0])
    attention_dim, is_gated = weights["attention.branch.weight"].shape[0], baseline == "attn_gated"
    return model_settings.AttentionMIL(hidden_dim=width, attention_dim=attention_dim, gated=is_gated)


def translate(official: Mapping[str, Tensor], baseline: str) -> dict[str, Tensor]:
    """The authors' weights by our names, in float32, denormals zeroed; unknown names stay as they are."""
    names = OUR_NAMES[baseline]
    translated = {}
    for name, value in official.items():
        if name in UNUSED_NAMES.get(baseline, ()):
            continue
        if name == _CLASS_TOKEN and value.ndim == 3:
            value = value[0]  # the authors' token has a batch dimension in front
        value = value.float()
        is_denormal = value.abs() < torch.finfo(torch.float32).tiny
        translated[names.get(name, name)] = value.masked_fill(is_denormal, 0.0)
    return translated


def _baseline(settings: model_settings.ModelSettings) -> str:
    match settings:
        case model_settings.AttentionMIL():
            return "attn_gated" if settings.gated else "attn"
        case model_settings.TransMIL():
            return "selfattn"
        case model_settings.DSMIL():
            return "dsmil"
    raise ConfigError(
        f"expected a model that the authors released (abmil, transmil or dsmil), got {settings.name}"
    )


def _check(
    weights: Mapping[str, Tensor],
    settings: model_settings.ModelSettings,
    path: Path,
    found: Mapping[str, Tensor],
) -> None:
    """Compare names and shapes with the model's, for the file's input width and number of classes."""
    projection, head_bias = weights.get("projection.linear.weight"), weights.get("head.bias")
    expected = build(
        settings,
        num_features=projection.shape[-1] if projection is not None and projection.ndim == 2 else 1,
        num_classes=len(head_bias) if head_bias is not None and head_bias.ndim else 1,
        seed=0,
    ).state_dict()
    if faults := differences(weights, expected):
        model, hint = _MODELS[_baseline(settings)], _what_fits(found, weights, expected)
        beside = weights.keys() > expected.keys() and not differences(
            {name: weights[name] for name in expected}, expected
        )
        way_out = "; if these belong to a loss or a metric, save the file without them" if beside else ""
        raise CheckpointError(f"{path}: the weights do not fit {model}{hint}: {'; '.join(faults)}{way_out}")


def _what_fits(
    found: Mapping[str, Tensor], weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> str:
    """Which of the released models has exactly the names in a file, or which width fits; may be empty."""
    if weights.keys() == expected.keys():
        got, wanted = (each["projection.linear.weight"].shape[:1] for each in (weights, expected))
        return f" (their model.hidden_dim is {got[0]})" if got and got != wanted else ""
    for baseline, text in _MODELS.items():
        if _complete(found, baseline) is not None:
            return f", but have the names of {text}"
    return ""
