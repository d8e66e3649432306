"""The peers of the benchmarks: a naive MHIM step in the authors' order, and torchmil's training step.

The naive step does what the authors' first release does, in the same order, with torch's own operators at
full speed: the teacher (in train mode) and the student both project all instances and drop features with
`nn.Dropout`; the masks are united through Python sets; the projected instances are gathered; Adam and the
moving average go through the parameters one by one; the losses are read back. All of it is float32.

Dimensions: N instances of the bag, D features, E width, H heads, P landmarks, K width of a head, C classes.
"""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mhimdist.config.method import Masking
from mhimdist.config.train import TrainConfig


class Laps:
    """The time of a step by parts: seconds of each, summed since the last `take`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = 0.0

    def start(self) -> None:
        """Begin a part."""
        self._last = time.perf_counter()

    def __call__(self, part: str) -> None:
        """End a part and begin the next."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """The parts in milliseconds; they begin at zero again."""
        parts = {part: seconds * 1e3 for part, seconds in self.seconds.items()}
        self.seconds.clear()
        return parts


class NaiveAttentionMIL(nn.Module):
    """AB-MIL without a gate."""

    def __init__(self, num_features: int, num_classes: int, width: int = 512) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(num_features, width), nn.ReLU())
        self.dropout = nn.Dropout(0.25)
        self.attention = nn.Sequential(
            nn.Linear(width, 128, bias=False), nn.ReLU(), nn.Linear(128, 1, bias=False)
        )
        self.head = nn.Linear(width, num_classes)

    def encode(self, hidden_NE: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Bag embeddings, scores H x N for masking, and the logits, each of which has a cross-entropy."""
        attention_1N = torch.softmax(self.attention(hidden_NE).T, dim=-1)
        embedding_1E = attention_1N @ hidden_NE
        return embedding_1E, attention_1N, [self.head(embedding_1E)]


class NaiveDSMIL(nn.Module):
    """DSMIL with non-linear queries and values."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(num_features, 512), nn.ReLU())
        self.dropout = nn.Dropout(0.25)
        self.instance_head = nn.Linear(512, num_classes)
        self.query = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.value = nn.Sequential(nn.Linear(512, 512), nn.ReLU())
        self.head = nn.Conv1d(num_classes, num_classes, kernel_size=512)

    def encode(self, hidden_NE: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """As `NaiveAttentionMIL.encode`."""
        logits_NC = self.instance_head(hidden_NE)
        values_NE, queries_NQ = self.value(hidden_NE), self.query(hidden_NE)
        top_C = torch.sort(logits_NC, 0, descending=True).indices[0]
        top_CQ = self.query(hidden_NE.index_select(0, top_C))
        attention_NC = torch.softmax(queries_NQ @ top_CQ.T / math.sqrt(queries_NQ.shape[1]), dim=0)
        embedding_CE = attention_NC.T @ values_NE
        bag_logits_1C = self.head(embedding_CE[None]).view(1, -1)
        scores_1N = logits_NC.max(1).values[None]
        return embedding_CE, scores_1N, [bag_logits_1C, logits_NC.max(0).values[None]]


class NaiveNystrom(nn.Module):
    """Nystrom attention that forms every query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(512, 3 * 512, bias=False)
        self.output = nn.Sequential(nn.Linear(512, 512), nn.Dropout(0.1))
        self.residual = nn.Conv2d(8, 8, (33, 1), padding=(16, 0), groups=8, bias=False)

    def forward(self, tokens_LE: Tensor, *, with_scores: bool) -> tuple[Tensor, Tensor]:
        """What every token gathers and, if asked for, the class token's attention in each head."""
        num_tokens = len(tokens_LE)
        padded_SE = functional.pad(tokens_LE, (0, 0, -num_tokens % 256, 0))
        queries, keys, values = (
            part.unflatten(1, (8, 64)).transpose(0, 1) for part in self.qkv(padded_SE).chunk(3, dim=-1)
        )
        queries = queries * 64**-0.5
        query_marks, key_marks = (part.unflatten(1, (256, -1)).mean(2) for part in (queries, keys))
        near_HSP = torch.softmax(queries @ key_marks.mT, dim=-1)
        inverse_HPP = self._pinv(torch.softmax(query_marks @ key_marks.mT, dim=-1))
        far_HPS = torch.softmax(query_marks @ keys.mT, dim=-1)
        gathered = (near_HSP @ inverse_HPP) @ (far_HPS @ values)
        gathered = gathered + self.residual(values[None])[0]
        result_LE = self.output(gathered.transpose(0, 1).flatten(1))[-num_tokens:]
        if not with_scores:
            return result_LE, far_HPS[:, 0]
        class_token = near_HSP[:, -num_tokens, None] @ inverse_HPP
        return result_LE, (class_token @ far_HPS)[:, 0, -num_tokens:]

    @staticmethod
    def _pinv(matrix_HPP: Tensor) -> Tensor:
        absolute = matrix_HPP.abs()
        inverse = matrix_HPP.mT / (absolute.sum(-1).max() * absolute.sum(-2).max())
        one = torch.eye(256, device=matrix_HPP.device)
        for _ in range(6):
            product = matrix_HPP @ inverse
            inner = 13 * one - (product @ (15 * one - (product @ (7 * one - product))))
            inverse = 0.25 * inverse @ inner
        return inverse


class NaiveTransMIL(nn.Module):
    """TransMIL that runs its second layer for all tokens and its three convolutions one by one."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(num_features, 512), nn.ReLU())
        self.dropout = nn.Dropout(0.25)
        self.class_token = nn.Parameter(torch.randn(1, 512))
        self.norm1, self.layer1 = nn.LayerNorm(512), NaiveNystrom()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(512, 512, size, padding=size // 2, groups=512) for size in (7, 5, 3)
        )
        self.norm2, self.layer2 = nn.LayerNorm(512), NaiveNystrom()
        self.norm = nn.LayerNorm(512)
        self.head = nn.Linear(512, num_classes)

    def encode(self, hidden_NE: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """As `NaiveAttentionMIL.encode`; the scores, of eight heads, are formed only for the teacher."""
        tokens_LE = torch.cat([self.class_token, hidden_NE])
        gathered_LE, attention_HL = self.layer1(
            self.norm1(tokens_LE), with_scores=not torch.is_grad_enabled()
        )
        tokens_LE = tokens_LE + gathered_LE
        tokens_LE = torch.cat([tokens_LE[:1], self._position(tokens_LE[1:])])
        tokens_LE = tokens_LE + self.layer2(self.norm2(tokens_LE), with_scores=False)[0]
        embedding_1E = self.norm(tokens_LE)[:1]
        return embedding_1E, attention_HL[:, 1:], [self.head(embedding_1E)]

    def _position(self, tokens_NE: Tensor) -> Tensor:
        side = math.ceil(math.sqrt(len(tokens_NE)))
        square = torch.cat([tokens_NE, tokens_NE[: side**2 - len(tokens_NE)]]).T.view(1, 512, side, side)
        encoded = square
        for convolution in self.convolutions:
            encoded = encoded + convolution(square)
        return encoded.flatten(2)[0].T[: len(tokens_NE)]


NETWORKS: dict[str, type[NaiveAttentionMIL | NaiveDSMIL | NaiveTransMIL]] = {
    "abmil": NaiveAttentionMIL,
    "dsmil": NaiveDSMIL,
    "transmil": NaiveTransMIL,
}


def _subtract(taken: Tensor, num_instances: int) -> list[int]:
    """The instances that are not taken, by Python sets and in their order."""
    return list(set(range(num_instances)).difference(set(taken.tolist())))


def naive_kept(scores_HN: Tensor, masking: Masking) -> Tensor:
    """The instances that the random, the low and the high mask leave, at the start of a run."""
    num_heads, num_instances = scores_HN.shape
    taken = torch.empty(0, dtype=torch.int64)
    kept = list(range(num_instances))

    def extreme(ratio: float, *, largest: bool) -> Tensor:
        count = math.ceil(num_instances * ratio)
        top_HK = torch.topk(scores_HN, count, largest=largest, sorted=False).indices
        if num_heads == 1:
            return top_HK[0]
        votes_N = torch.zeros_like(scores_HN).scatter_(1, top_HK, 1.0).sum(0)
        return torch.topk(votes_N, count, sorted=False).indices

    if masking.random.start:
        taken = torch.randperm(num_instances)[: math.ceil(num_instances * masking.random.start)]
        kept = _subtract(taken, num_instances)
    if masking.low.start:
        taken = torch.cat([extreme(masking.low.start, largest=False), taken]).unique()
        kept = _subtract(taken, num_instances)
    if masking.high.start:
        pool = extreme(masking.high.start / masking.high_pool_share, largest=True)
        if masking.high_pool_share < 1:
            pool = pool[torch.randperm(len(pool))[: math.ceil(len(pool) * masking.high_pool_share)]]
        taken = torch.cat([pool, taken]).unique()
        kept = _subtract(taken, num_instances)
    return torch.tensor(kept)


class NaiveStep:
    """The authors' training step of one bag.

    Attributes:
        laps: milliseconds of its parts.
    """

    def __init__(self, config: TrainConfig, *, num_features: int, num_classes: int) -> None:
        self.config = config
        self.student = NETWORKS[config.model.name](num_features, num_classes)
        for module in self.student.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.optimizer = torch.optim.Adam(
            self.student.parameters(),
            lr=config.optimizer.learning_rate,
            weight_decay=config.optimizer.weight_decay,
            foreach=False,
        )
        self.laps = Laps()

    def __call__(self, features_ND: Tensor, label_1: Tensor) -> tuple[float, float, float]:
        """Train on a bag; returns the loss, the cross-entropy and the consistency loss."""
        self.laps.start()
        with torch.no_grad():
            hidden_NE = self.teacher.dropout(self.teacher.projection(features_ND))
            target_ME, scores_HN, _ = self.teacher.encode(hidden_NE)
        self.laps("teacher")
        hidden_NE = self.student.projection(features_ND)
        self.laps("projection")
        hidden_NE = self.student.dropout(hidden_NE)
        self.laps("dropout")
        kept_K = naive_kept(scores_HN, self.config.masking)
        self.laps("mask")
        embedding_ME, _, logits = self.student.encode(hidden_NE.index_select(0, kept_K))
        classification = torch.stack([functional.cross_entropy(each, label_1) for each in logits]).mean()
        target_ME = torch.softmax(target_ME / self.config.loss.temperature, dim=-1)
        consistency = -(target_ME * torch.log_softmax(embedding_ME, dim=-1)).sum(-1).mean()
        loss = classification + self.config.loss.alpha * consistency
        self.laps("rest of forward")
        self.optimizer.zero_grad()
        loss.backward()
        self.laps("backward")
        self.optimizer.step()
        self.laps("optimiser")
        self.average()
        self.laps("average")
        values = loss.item(), classification.item(), consistency.item()
        self.laps("read back")
        return values

    def update(self) -> None:
        """Adam and the moving average alone, with the present gradients."""
        self.optimizer.step()
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Move the teacher towards the student, parameter by parameter."""
        momentum = self.config.teacher.momentum.start
        for own, of_student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.mul_(momentum).add_((1 - momentum) * of_student)


class TorchmilStep:
    """torchmil's plain training step of the same network: no teacher and no mask, one logit."""

    def __init__(self, config: TrainConfig, *, num_features: int) -> None:
        from torchmil import models  # the optional `bench` extra

        projection = nn.Sequential(nn.Linear(num_features, 512), nn.ReLU(), nn.Dropout(0.25))
        shape = (num_features,)
        make: dict[str, Callable[[], nn.Module]] = {
            "abmil": lambda: models.ABMIL(shape, att_dim=128, att_act="relu", feat_ext=projection),
            "dsmil": lambda: models.DSMIL(
                shape, att_dim=128, nonlinear_q=True, nonlinear_v=True, feat_ext=projection
            ),
            "transmil": lambda: models.TransMIL(
                shape, att_dim=512, n_heads=8, n_landmarks=256, dropout=0.1, feat_ext=projection
            ),
        }
        self.network = make[config.model.name]().train()
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=config.optimizer.learning_rate,
            weight_decay=config.optimizer.weight_decay,
        )

    def __call__(self, features_ND: Tensor, label_1: Tensor) -> float:
        """Train on a bag as torchmil's trainer does; returns the loss."""
        self.optimizer.zero_grad()
        _, losses = self.network.compute_loss(label_1.float(), features_ND[None])
        loss = torch.stack(list(losses.values())).sum()
        value = loss.item()
        loss.backward()
        self.optimizer.step()
        return value
