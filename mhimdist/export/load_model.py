"""Load an exported bag model and apply it to slides. Needs PyTorch and safetensors, nothing else.

    from load_model import load

    model = load(".")                                   # the folder of the export, or one of its files
    probabilities_C, attention_NH = model(features_ND)  # N x D patch features of one slide
    print(dict(zip(model.columns, probabilities_C.tolist())))

This file is copied next to the weights, for tasks other than classification with load_task.py; keep them
together. They are Apache-2.0, from mhimdist.

Dimensions: N instances of a bag, D features, E embedding width, C classes, H heads of attention, P landmarks
or pseudo-bags, L = N + 1 tokens, S padded tokens, W side of a square of tokens, Z distilled features.
"""

import hashlib
import json
import runpy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

FORMAT = "mhimdist-export"
FORMAT_VERSION = 1

Settings = dict[str, Any]
Result = tuple[Tensor, Tensor | None]


class ExportError(Exception):
    """A file is not an export, is damaged, or is of another version; or features do not fit the model."""


def attend(scores_NH: Tensor, values_NE: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the values, weighted by the softmax of each column, H x E, and the weights, N x H."""
    attention_NH = torch.softmax(scores_NH, dim=0)
    return attention_NH.T @ values_NE, attention_NH


def projection(num_features: int, width: int, bias: bool = True) -> nn.Module:
    """A linear layer and a ReLU on every instance."""
    return nn.Sequential(OrderedDict(linear=nn.Linear(num_features, width, bias=bias), relu=nn.ReLU()))


class Attention(nn.Module):
    """Scores before the softmax, N x H: an activation of one branch, times a sigmoid of another if gated."""

    def __init__(self, width: int, dim: int, heads: int, gated: bool, activation: str, bias: bool) -> None:
        super().__init__()
        self.branch = nn.Linear(width, dim, bias=bias)
        self.gate = nn.Linear(width, dim, bias=bias) if gated else None
        self.score = nn.Linear(dim, heads, bias=bias)
        self.is_relu = activation == "relu"

    def forward(self, hidden_NE: Tensor) -> Tensor:
        hidden = (torch.relu if self.is_relu else torch.tanh)(self.branch(hidden_NE))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(hidden_NE))
        return self.score(hidden)


class Network(nn.Module):
    """A network for one bag, whose outputs become class probabilities, or what load_task.py sets."""

    def predict(self, outputs_C: Tensor) -> Tensor:
        return torch.softmax(outputs_C, -1)

    def average(self, predictions: list[Tensor], headers: list[Settings]) -> Tensor:
        return torch.stack(predictions).mean(0)


class PoolingMIL(Network):
    """The maximum or the mean of the instances' logits; without attention."""

    def __init__(self, settings: Settings, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.projection = projection(num_features, settings["hidden_dim"])
        self.head = nn.Linear(settings["hidden_dim"], num_classes)
        self.is_max = settings["name"] == "max_pooling"

    def forward(self, features_ND: Tensor) -> Result:
        logits_NC = self.head(self.projection(features_ND))
        return self.predict(logits_NC.amax(0) if self.is_max else logits_NC.mean(0)), None


class AttentionMIL(Network):
    """AB-MIL and CLAM-SB, with one head of attention, and CLAM-MB, with one per class; each sums to 1."""

    def __init__(self, settings: Settings, num_features: int, num_classes: int) -> None:
        super().__init__()
        width, dim, is_clam = settings["hidden_dim"], settings["attention_dim"], settings["name"] != "abmil"
        self.heads = num_classes if settings["name"] == "clam_mb" else 1
        is_gated, activation = is_clam or settings["gated"], settings.get("activation", "tanh")
        self.projection = projection(num_features, width)
        self.attention = Attention(width, dim, self.heads, is_gated, activation, bias=is_clam)
        self.head = nn.Linear(width, num_classes)
        if is_clam:  # only training uses these; they are here so that the file's weights are complete
            num_heads = settings.get("num_classes", num_classes)
            self.instance_heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(num_heads))

    def forward(self, features_ND: Tensor) -> Result:
        hidden_NE = self.projection(features_ND)
        embeddings_HE, attention_NH = attend(self.attention(hidden_NE), hidden_NE)
        logits_C = (embeddings_HE * self.head.weight).sum(1) + self.head.bias
        return self.predict(logits_C), attention_NH


class DSMIL(Network):
    """DSMIL: the mean of two classifiers' probabilities; attention to each class's top instance, N x C."""

    def __init__(self, settings: Settings, num_features: int, num_classes: int) -> None:
        super().__init__()
        width, query_dim = settings["hidden_dim"], settings["query_dim"]
        self.projection = projection(num_features, width)
        self.instance_head = nn.Linear(width, num_classes)
        self.query = nn.Sequential(
            nn.Linear(width, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh()
        )
        self.value = nn.Linear(width, width)
        self.head = nn.Conv1d(num_classes, num_classes, kernel_size=width)

    def forward(self, features_ND: Tensor) -> Result:
        hidden_NE = self.projection(features_ND)
        logits_NC, queries_NQ = self.instance_head(hidden_NE), self.query(hidden_NE)
        tops_CQ = queries_NQ[logits_NC.argmax(0)]
        scores_NC = queries_NQ @ tops_CQ.T * queries_NQ.shape[1] ** -0.5
        embeddings_CE, attention_NC = attend(scores_NC, torch.relu(self.value(hidden_NE)))
        bag_C = functional.linear(embeddings_CE.flatten(), self.head.weight.flatten(1), self.head.bias)
        both_2C = torch.stack([bag_C, logits_NC.amax(0)])
        return self.predict(both_2C).mean(0), attention_NC


class Nystrom(nn.Module):
    """Nystrom attention with a convolution of the values along the sequence."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width, self.heads = settings["hidden_dim"], settings["num_heads"]
        self.landmarks, self.iterations = settings["num_landmarks"], settings["pinv_iterations"]
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)
        heads = self.heads
        self.residual = nn.Conv2d(heads, heads, (33, 1), padding=(16, 0), groups=heads, bias=False)

    def forward(self, tokens_LE: Tensor, token_alone: bool) -> tuple[Tensor, Tensor]:
        """What every token gathers (or the first alone), and the first token's attention, H x L."""
        num_tokens = tokens_LE.shape[0]
        size = (num_tokens + self.landmarks - 1) // self.landmarks
        zeros = size * self.landmarks - num_tokens
        index_S = torch.arange(size * self.landmarks, device=tokens_LE.device) - zeros
        padded_SE = torch.where(index_S[:, None] >= 0, tokens_LE[index_S.clamp_min(0)], 0.0)
        means_PE = padded_SE.unflatten(0, (self.landmarks, size)).mean(1)

        queries_HPK, scaled_HPK, _ = self.project(means_PE)
        scale = queries_HPK.shape[2] ** -0.5
        scaled_HPK = scaled_HPK * scale
        inverse = PseudoInverse(torch.softmax(queries_HPK @ scaled_HPK.mT, 2), self.iterations)
        _, keys_HSK, values_HSK = self.project(padded_SE)
        to_tokens_HPS = torch.softmax(queries_HPK * scale @ keys_HSK.mT, 2)

        own_LE = tokens_LE[:1] if token_alone else tokens_LE
        from_tokens_HLP = torch.softmax(self.project(own_LE)[0] @ scaled_HPK.mT, 2)
        attention_HS = (inverse.after(from_tokens_HLP[:, :1]) @ to_tokens_HPS)[:, 0]
        convolved_HSK = self.residual(values_HSK[None])[0]
        first_H1K = attention_HS[:, None] @ values_HSK
        if token_alone:
            gathered_HLK = first_H1K + convolved_HSK[:, zeros : zeros + 1]
        else:
            gathered_HLK = from_tokens_HLP @ inverse.times(to_tokens_HPS @ values_HSK)
            gathered_HLK = gathered_HLK + convolved_HSK[:, zeros:]
        return self.output(gathered_HLK.transpose(0, 1).flatten(1)), attention_HS[:, zeros:]

    def project(self, tokens_LE: Tensor) -> Tensor:
        """Queries, keys and values, 3 x H x L x K."""
        return self.qkv(tokens_LE).unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3)


class PseudoInverse:
    """The iterated pseudo-inverse Z of H x P x P matrices, by the powers of A A^T: Z right, and left Z."""

    def __init__(self, matrix_HPP: Tensor, iterations: int) -> None:
        size = matrix_HPP.abs()
        self.root = (size.sum(2).max() * size.sum(1).max()).sqrt()
        self.scaled_HPP = matrix_HPP / self.root
        power_HPP = self.scaled_HPP @ self.scaled_HPP.mT
        identity_PP = torch.eye(matrix_HPP.shape[2], device=matrix_HPP.device)
        self.powers = [power_HPP]
        for _ in range(iterations - 1):
            square_HPP = power_HPP @ power_HPP
            factor_HPP = 7 * power_HPP - square_HPP - 15 * identity_PP
            power_HPP = 3.25 * power_HPP + square_HPP @ factor_HPP / 4
            self.powers.append(power_HPP)

    def times(self, right_HPW: Tensor) -> Tensor:
        return self.scaled_HPP.mT @ self._factors(right_HPW) / self.root

    def after(self, left_HWP: Tensor) -> Tensor:
        return self._factors(self.scaled_HPP @ left_HWP.mT / self.root).mT

    def _factors(self, v_HPW: Tensor) -> Tensor:
        for power_HPP in self.powers:
            t_HPW = power_HPP @ v_HPW
            u_HPW = power_HPP @ (power_HPP @ (7 * v_HPW - t_HPW))
            v_HPW = (u_HPW + 13 * v_HPW - 15 * t_HPW) / 4
        return v_HPW


class PositionEncoding(nn.Module):
    """Three depth-wise convolutions over the instances laid out as a square, plus the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convs = (nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3))
        self.conv7, self.conv5, self.conv3 = convs

    def forward(self, tokens_NE: Tensor) -> Tensor:
        """N x E; the first instances fill a square of side ceil(sqrt(N)), and zeros one of up to 7 x 7."""
        num = tokens_NE.shape[0]
        # A tensor, because an exporter has to compute it from N.
        exact = torch.full((), num, dtype=torch.float64, device=tokens_NE.device)
        root = torch.ceil(torch.sqrt(exact)).to(torch.int64)
        side: int = root.clamp_min(7).item()  # type: ignore[assignment]  # of an int64 tensor
        torch._check(side >= 7)
        index_S = torch.arange(side * side, device=tokens_NE.device)
        source_S = torch.where(index_S < num, index_S, index_S - num).clamp_max(num - 1)
        square_SE = torch.where((index_S < root * root)[:, None], tokens_NE[source_S], 0.0)
        square_1EWW = square_SE.T.reshape(1, -1, side, side)
        encoded_1EWW = self.conv7(square_1EWW) + self.conv5(square_1EWW) + self.conv3(square_1EWW)
        own_N = torch.arange(num, device=tokens_NE.device)
        return encoded_1EWW[0].flatten(1).T[own_N] + tokens_NE


class Layer(nn.Module):
    """A normalisation and an attention, added to the tokens."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings["hidden_dim"])
        self.attention = Nystrom(settings)

    def forward(self, tokens_LE: Tensor, token_alone: bool) -> tuple[Tensor, Tensor]:
        gathered_LE, attention_HL = self.attention(self.norm(tokens_LE), token_alone)
        return (tokens_LE[:1] if token_alone else tokens_LE) + gathered_LE, attention_HL


class TransMIL(Network):
    """TransMIL; the class token's attention in each head is no softmax and may be negative."""

    def __init__(self, settings: Settings, num_features: int, num_classes: int) -> None:
        super().__init__()
        width = settings["hidden_dim"]
        self.score_layer = settings["score_layer"]
        self.projection = projection(num_features, width)
        self.class_token = nn.Parameter(torch.empty(1, width))
        self.layer1, self.layer2 = Layer(settings), Layer(settings)
        self.position = PositionEncoding(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, features_ND: Tensor) -> Result:
        tokens_LE = torch.cat([self.class_token, self.projection(features_ND)])
        tokens_LE, attention1_HL = self.layer1(tokens_LE, token_alone=False)
        tokens_LE = torch.cat([tokens_LE[:1], self.position(tokens_LE[1:])])
        token_1E, attention2_HL = self.layer2(tokens_LE, token_alone=True)
        logits_1C = self.head(self.norm(token_1E))
        attention_HL = (attention1_HL, attention2_HL)[self.score_layer]
        return self.predict(logits_1C[0]), attention_HL[:, 1:].T


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    return (word & (1 << 64) - 1) - (word >> 63 & 1) * (1 << 64)


def _scattered(words: Tensor) -> Tensor:
    """SplitMix64's finaliser."""
    for bits, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ (words >> bits) & (1 << 64 - bits) - 1) * _signed(multiplier)
    return words ^ (words >> 31) & (1 << 33) - 1


def cut_key(slide: str) -> Tensor:
    """The number from which DTFD's cut of a slide into pseudo-bags follows, int64 without dimensions."""
    number = int.from_bytes(hashlib.blake2b(slide.encode(), digest_size=8).digest(), "little") >> 1
    stream = hashlib.blake2b(b"0/0/pseudo_bags", digest_size=8).digest()
    return _scattered(torch.tensor(_signed(number ^ int.from_bytes(stream, "little"))))


class DTFD(Network):
    """DTFD-MIL: attention over random pseudo-bags, then over what is distilled from each.

    The slide's name fixes the cut, as in mhimdist's own evaluation. The attention is the weight of each
    instance in the bag's embedding.
    """

    def __init__(self, settings: Settings, num_features: int, num_classes: int) -> None:
        super().__init__()
        width, dim = settings["hidden_dim"], settings["attention_dim"]
        self.num_parts, self.distillation = settings["num_pseudo_bags"], settings["distillation"]
        self.projection = projection(num_features, width, bias=False)
        self.pseudo_attention = Attention(width, dim, 1, True, "tanh", bias=True)
        self.pseudo_head = nn.Linear(width, num_classes)
        self.attention = Attention(width, dim, 1, True, "tanh", bias=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, features_ND: Tensor, key: Tensor) -> Result:
        hidden_NE = self.projection(features_ND)
        is_part_PN = self.cut(features_ND.shape[0], key)
        scores_PN = torch.where(is_part_PN, self.pseudo_attention(hidden_NE).T, -torch.inf)
        # Parts without an instance, of a bag smaller than the parts are many, get no weight below.
        is_used_P1 = is_part_PN.any(1, keepdim=True)
        weights_PN = torch.softmax(torch.where(is_used_P1, scores_PN, 0.0), 1)
        if self.distillation == "AFS":
            shares_ZN, is_used_Z1 = weights_PN, is_used_P1
        else:
            own_N1 = torch.where(is_part_PN, weights_PN, 0.0).sum(0)[:, None]
            activation_NC = functional.linear(own_N1 * hidden_NE, self.pseudo_head.weight)
            last_N = torch.softmax(activation_NC, 1)[:, -1]
            best = [torch.where(is_part_PN, last_N, -torch.inf).argmax(1)]
            if self.distillation == "MaxMinS":
                best.append(torch.where(is_part_PN, -last_N, -torch.inf).argmax(1))
            rows_Z, is_used_Z1 = torch.cat(best), torch.cat([is_used_P1] * len(best))
            own_N = torch.arange(features_ND.shape[0], device=features_ND.device)
            shares_ZN = (rows_Z[:, None] == own_N).to(hidden_NE.dtype)
        distilled_ZE = shares_ZN @ hidden_NE
        scores_Z1 = torch.where(is_used_Z1, self.attention(distilled_ZE), -torch.inf)
        embedding_1E, attention_Z1 = attend(scores_Z1, distilled_ZE)
        return self.predict(self.head(embedding_1E)[0]), (attention_Z1.T @ shares_ZN).T

    def cut(self, num: int, key: Tensor) -> Tensor:
        """Whether an instance is in a pseudo-bag, P x N; the pseudo-bags' sizes differ by at most 1."""
        own_N = torch.arange(num, device=key.device)
        words_N = _scattered(key + (own_N + 1) * _signed(0x9E3779B97F4A7C15))
        order_N = words_N.topk(num, largest=False).indices
        place_N = (-order_N).topk(num).indices
        part_P = torch.arange(self.num_parts, device=key.device)
        used = torch.full((), num, device=key.device).clamp_max(self.num_parts)
        sizes_P = (num + used - 1 - part_P) // used
        ends_P = torch.where(part_P < used, sizes_P, 0).cumsum(0)
        starts_P = torch.cat([ends_P.new_zeros(1), ends_P[:-1]])
        return (place_N >= starts_P[:, None]) & (place_N < ends_P[:, None])


NETWORKS: dict[str, type[Network]] = {"dsmil": DSMIL, "transmil": TransMIL, "dtfd": DTFD}
NETWORKS |= dict.fromkeys(("abmil", "clam_sb", "clam_mb"), AttentionMIL)
NETWORKS |= dict.fromkeys(("max_pooling", "mean_pooling"), PoolingMIL)


class Model:
    """One or several exported networks; several are averaged.

    Attributes:
        networks: the networks, in evaluation mode.
        headers, header: what each file and the first says: encoder, threshold, data, metrics, licence, ...
        classes, columns: names of the classes, and of the predictions, by default their probabilities.
    """

    def __init__(self, networks: list[Network], headers: list[dict[str, Any]]) -> None:
        self.networks, self.headers, self.header = networks, headers, headers[0]
        self.classes: list[str] = headers[0]["classes"]
        self.columns: list[str] = headers[0].get("columns", self.classes)

    @torch.inference_mode()
    def __call__(self, features_ND: Tensor, slide: str = "") -> Result:
        """Class probabilities or what is predicted, C, and attention, N x H (None for max- and mean-pooling).

        Args:
            features_ND: patch features of one slide, in their order, of the encoder that the header names.
            slide: the slide's key in its shards. Only DTFD-MIL uses it: it cuts the bag as in evaluation.
        """
        width = self.header["num_features"]
        if (shape := tuple(features_ND.shape))[1:] != (width,) or not shape[0]:
            raise ExportError(f"expected features of N x {width} with N of 1 or more, got {shape}")
        device = next(self.networks[0].parameters()).device
        features_ND = features_ND.to(device, torch.float32)
        key: dict[type, list[Tensor]] = {DTFD: [cut_key(slide).to(device)]}
        results = [network(features_ND, *key.get(type(network), ())) for network in self.networks]
        mean_C = self.networks[0].average([each for each, _ in results], self.headers)
        attentions = [attention for _, attention in results if attention is not None]
        return mean_C, torch.stack(attentions).mean(0) if attentions else None


def load(path: str | Path) -> Model:
    """Load an export on the CPU: a file, or a folder, whose .safetensors files are then one ensemble."""
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ExportError(f"{path}: expected a file or files that end in .safetensors, found none")
    headers = [read_header(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        for name in ("classes", "columns", "num_features", "encoder"):
            if (got := header.get(name)) != (first := headers[0].get(name)):
                raise ExportError(f"{file}: {name}: expected {first}, as in {files[0].name}, got {got}")
    return Model([_network(*each) for each in zip(files, headers, strict=True)], headers)


def build(header: dict[str, Any]) -> Network:
    """The network that a header describes, without its weights."""
    settings = {**header["model"], "num_classes": (num_classes := len(header["classes"]))}
    num_outputs = header.get("num_outputs", num_classes)
    made = NETWORKS[settings["name"]](settings, header["num_features"], num_outputs)
    if "task" in header:
        runpy.run_path(str(Path(__file__).with_name("load_task.py")))["equip"](made, header)
    return made


def _network(file: Path, header: dict[str, Any]) -> Network:
    with torch.device("meta"):
        made = build(header)
    try:
        made.load_state_dict(load_file(file), assign=True)
    except RuntimeError as error:
        raise ExportError(f"{file}: its weights do not fit its own header: {error}") from None
    return made.eval().requires_grad_(False)


def read_header(file: str | Path) -> dict[str, Any]:
    """The header of an exported file, after a check of every byte against the digest in it."""
    file = Path(file)
    try:
        content = file.read_bytes()
        entries = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        said = entries.get("__metadata__") or {}
        document = json.loads(said["mhimdist"]) if "mhimdist" in said else {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ExportError(f"{file}: expected an export of mhimdist, cannot read one: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ExportError(f"{file}: expected an export of mhimdist, got a file without its header")
    if (version := document.get("format_version")) != FORMAT_VERSION:
        hint = "use the load_model.py that was written next to it"
        raise ExportError(f"{file}: expected format version {FORMAT_VERSION}, got {version}: {hint}")
    if said.get("sha256") != (got := digest(content)):
        raise ExportError(f"{file} was changed or damaged: expected sha256 {said.get('sha256')}, got {got}")
    return document


def digest(content: bytes) -> str:
    """The sha256 of an exported file's header and weights, apart from the place of the digest itself."""
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    entries["__metadata__"] = {"mhimdist": entries["__metadata__"]["mhimdist"]}
    hashed = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    hashed.update(memoryview(content)[start:])
    return hashed.hexdigest()
