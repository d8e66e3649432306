"""Checkpoints as other people save them: prefixes, wrappings, formats, and weights of other networks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from wild_inputs import Refused, refused, refuses

from mhimdist.config.models import DSMIL, AttentionMIL, ModelSettings, TransMIL
from mhimdist.errors import CheckpointError
from mhimdist.models import build
from mhimdist.models.official import OUR_NAMES, load_official

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, the network that it is read for, and what is right.

    Attributes:
        kind, name: what it is an example of, and which one.
        path: its name.
        content: what is saved.
        settings: the network.
        answer: the weights by our names, or the refusal.
        which: the student or the teacher.
    """

    kind: str
    name: str
    path: str
    content: Any
    settings: ModelSettings
    answer: Weights | Refused
    which: str = "model"

    def __str__(self) -> str:
        return str(self.answer) if isinstance(self.answer, Refused) else f"{len(self.answer)} tensors"


ABMIL = AttentionMIL(hidden_dim=8, attention_dim=4)
GATED = AttentionMIL(hidden_dim=8, attention_dim=4, gated=True)
NETWORKS: dict[str, ModelSettings] = {
    "attn": ABMIL,
    "attn_gated": GATED,
    "dsmil": DSMIL(hidden_dim=8, query_dim=4),
    "selfattn": TransMIL(hidden_dim=16, num_heads=2),
}


def drawn(settings: ModelSettings, seed: int, num_classes: int = 2) -> dict[str, Tensor]:
    """Weights of a network by our names."""
    return build(settings, num_features=6, num_classes=num_classes, seed=seed).state_dict()


def theirs(weights: Weights, baseline: str) -> dict[str, Tensor]:
    """The weights by the names of the authors of MHIM-MIL."""
    names = {ours: name for name, ours in OUR_NAMES[baseline].items()}
    return {names[name]: value for name, value in weights.items()}


def under(prefix: str, weights: Weights) -> dict[str, Tensor]:
    """The weights with a prefix before their names."""
    return {f"{prefix}{name}": value for name, value in weights.items()}


def checkpoints(seed: int) -> Iterator[Checkpoint]:
    """Files of each network, plain and wrapped, and files of others."""
    for number, (baseline, settings) in enumerate(NETWORKS.items()):
        weights = drawn(settings, seed + number, num_classes=2 + number % 2)
        official = theirs(weights, baseline)
        for name, path, content in (
            ("the authors' names", "a.pt", {"model": official}),
            ("our names in safetensors", "a.safetensors", weights),
            ("module.", "a.pth", {"state_dict": under("module.", official), "epoch": 3}),
            ("module. before our names", "a.pt", under("module.", weights)),
            (
                "model.module. of a trainer",
                "a.ckpt",
                {"state_dict": under("model.module.", official), "lr": 0.1},
            ),
            (
                "_orig_mod. of a compiler",
                "A.PT",
                {"model_state_dict": under("_orig_mod.", official), "optimizer": {"state": {}}},
            ),
        ):
            yield Checkpoint("checkpoint", f"{baseline}: {name}", path, content, settings, weights)
    student, teacher = drawn(ABMIL, seed), drawn(ABMIL, seed + 1)
    both = {"student": under("module.", student), "teacher": under("module.", teacher)}
    flat = under("student.", student) | under("teacher.", teacher)
    half = {name: value.half() for name, value in student.items()}
    rounded = {name: value.half().float() for name, value in student.items()}
    for name, content, which, answer in (
        ("student of two", both, "model", student),
        ("teacher of two", both, "teacher", teacher),
        ("student by prefix", flat, "model", student),
        ("teacher by prefix", {"state_dict": flat}, "teacher", teacher),
        ("half precision", half, "model", rounded),
        ("no teacher", {"model": student}, "teacher", ("expected the weights of the teacher, found none",)),
        (
            "no weights",
            {"epoch": 3, "lr": 0.1},
            "model",
            ("expected the weights of the model, found none", "epoch, lr"),
        ),
        (
            "a whole network",
            torch.nn.Linear(2, 2),
            "model",
            ("would run code", "save the network's state_dict()"),
        ),
        ("a number", 3, "model", ("expected the weights of the model, found none", "int")),
        (
            "a gated network",
            under("module.", drawn(GATED, seed)),
            "model",
            ("do not fit abmil without model.gated, but have the names of abmil with model.gated",),
        ),
        (
            "of another width",
            drawn(AttentionMIL(hidden_dim=12, attention_dim=4), seed),
            "model",
            ("their model.hidden_dim is 12",),
        ),
        (
            "one name missing",
            {k: v for k, v in student.items() if k != "head.bias"},
            "model",
            ("head.bias is missing",),
        ),
        ("one name too many", student | {"aux.weight": torch.ones(2)}, "model", ("aux.weight is unknown",)),
        (
            "of another architecture",
            {"layer1.0.conv1.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)},
            "model",
            (
                "a.pt: the weights do not fit abmil",
                "fc.bias is unknown",
                "projection.linear.bias is missing",
            ),
        ),
    ):
        right = refused(*answer, error=CheckpointError) if isinstance(answer, tuple) else answer
        yield Checkpoint("checkpoint", name, "a.pt", content, ABMIL, right, which)
    yield Checkpoint(
        "checkpoint",
        "cut short",
        "a.pt",
        b"PK\3\4" + bytes(50),
        ABMIL,
        refused("a.pt: expected a checkpoint", error=CheckpointError),
    )
    yield Checkpoint(
        "checkpoint",
        "a page of an error",
        "a.safetensors",
        b"<html>404</html>",
        ABMIL,
        refused("a.safetensors: expected a checkpoint", error=CheckpointError),
    )
    yield Checkpoint(
        "checkpoint", "no file", "a.pt", None, ABMIL, refused("a.pt", "No such file", error=CheckpointError)
    )


CHECKPOINTS = list(checkpoints(13))


def try_checkpoint(case: Checkpoint) -> None:
    """Read the file in the current folder, and compare its weights with the right answer."""
    path = Path(case.path)
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
    elif path.suffix == ".safetensors":
        save_file(dict(case.content), path)
    elif case.content is not None:
        torch.save(case.content, path)
    if isinstance(case.answer, Refused):
        refuses(case.answer, lambda: load_official(path, case.settings, case.which))
        return
    loaded = load_official(path, case.settings, case.which)
    assert loaded.keys() == case.answer.keys()
    tiny = torch.finfo(torch.float32).tiny
    for name, value in case.answer.items():
        assert torch.equal(loaded[name], value.masked_fill(value.abs() < tiny, 0)), name
