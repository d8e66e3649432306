"""A pack-based trainer of AB-MIL, written from the paper of PackMIL (arXiv 2509.20923): its main branch.

A step takes many slides. Of each it samples a share of the instances, at most L of them; a slide with few
instances is whole. The samples are laid end to end into packs of the fixed length L, the rest of a pack is
padding, and the softmax of the attention stays within a slide. Slides of very different sizes so make one
tensor, P packs x L instances, that any torch module can take.

The residual branch, which trains on what the sampling left out, and the downsampler, which merges
instances by their attention, are not built: the race is about the packs. A sample goes into the first pack
that has room, which leaves less padding than filling packs in turn.

Dimensions: P packs, L instances of a pack, S slides of a pack at most, B slides of a step, N instances of a
slide, K of its sample, D features, E width, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers import NaiveAttentionMIL
from mhimdist.config.models import AttentionMIL
from mhimdist.config.train import TrainConfig
from mhimdist.data.shards import BagShards
from mhimdist.models import BagModel


@dataclass(frozen=True)
class Packing:
    """How a step's slides become packs.

    Attributes:
        length: L.
        share: of a slide's instances that is sampled.
        smallest: a slide with fewer instances is whole.
    """

    length: int = 2400
    share: float = 0.6
    smallest: int = 128

    def sample_size(self, num_instances: int) -> int:
        """How many instances of a slide a step sees."""
        wanted = num_instances if num_instances < self.smallest else int(num_instances * self.share)
        return min(self.length, max(1, wanted))


def first_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """The positions of the samples in each pack: every sample goes into the first one that has room."""
    packs: list[list[int]] = []
    room: list[int] = []
    for position, size in enumerate(sizes):
        place = next((place for place, free in enumerate(room) if size <= free), len(packs))
        if place == len(packs):
            packs.append([])
            room.append(length)
        packs[place].append(position)
        room[place] -= size
    return packs


@dataclass(frozen=True, eq=False)
class Packs:
    """The packs of a step.

    Attributes:
        features_PLD: float32 features; padding is zero.
        slides_PL: which slide of its pack an instance belongs to, from 0; -1 for padding.
        order: the position in the step of each slide, pack after pack.
    """

    features_PLD: Tensor
    slides_PL: Tensor
    order: list[int]

    @classmethod
    def of(cls, samples: Sequence[Tensor], length: int) -> "Packs":
        """Pack the samples, each K x D, into packs of a length."""
        packs = first_fit([len(sample) for sample in samples], length)
        features_PLD = samples[0].new_zeros((len(packs), length, samples[0].shape[1]), dtype=torch.float32)
        slides_PL = torch.full((len(packs), length), -1, device=features_PLD.device)
        for place, members in enumerate(packs):
            start = 0
            for slide, position in enumerate(members):
                end = start + len(samples[position])
                features_PLD[place, start:end] = samples[position]
                slides_PL[place, start:end] = slide
                start = end
        return cls(features_PLD, slides_PL, [position for members in packs for position in members])


def embeddings(network: NaiveAttentionMIL, packs: Packs) -> Tensor:
    """The embedding of each slide, B x E, pack after pack: attention within a slide alone."""
    hidden_PLE = network.dropout(network.projection(packs.features_PLD))
    scores_PL = network.attention(hidden_PLE)[..., 0]
    numbers_S = torch.arange(int(packs.slides_PL.max()) + 1, device=packs.slides_PL.device)
    is_own_PSL = packs.slides_PL[:, None] == numbers_S[:, None]
    is_slide_PS = is_own_PSL.any(-1)
    # A slot without a slide gets equal weights, not NaN, and is left out after the product.
    masked_PSL = scores_PL[:, None].masked_fill(~is_own_PSL, torch.finfo(scores_PL.dtype).min)
    return (torch.softmax(masked_PSL, dim=-1) @ hidden_PLE)[is_slide_PS]


class PackTrainer:
    """Trains AB-MIL on packs.

    Attributes:
        network: what it trains.
    """

    def __init__(self, config: TrainConfig, start: BagModel, bags: BagShards, packing: Packing) -> None:
        """Begin with the weights of a network.

        Args:
            config: its width, optimiser, epochs, seed and slides per step are taken.
            start: AB-MIL without a gate, whose weights are copied and whose device trains.
            bags: the data set.
            packing: how the slides of a step become packs.
        """
        if not isinstance(config.model, AttentionMIL) or config.model.gated:
            raise ValueError(f"packs train AB-MIL without a gate, not {config.model}")
        self.config, self.bags, self.packing = config, bags, packing
        self._device = next(start.parameters()).device
        network = NaiveAttentionMIL(bags.num_features, len(bags.classes), config.model.hidden_dim)
        self.network = network.to(self._device)
        with torch.no_grad():
            for own, given in zip(_layers(self.network), layers_of(start), strict=True):
                own.weight.copy_(given.weight)
                if own.bias is not None:
                    own.bias.copy_(given.bias)
        optimizer = config.optimizer
        self._adam = torch.optim.Adam(
            self.network.parameters(), lr=optimizer.learning_rate, weight_decay=optimizer.weight_decay
        )

    def train_epoch(self, rows_N: np.ndarray, epoch: int) -> None:
        """Train on all slides of the rows once, in random order."""
        config = self.config
        rate = config.optimizer.rate(epoch, config.epochs, config.bags_per_step)
        for group in self._adam.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng((config.seed, epoch))
        torch.manual_seed(int(rng.integers(1 << 31)))
        order_N = rng.permutation(rows_N)
        for start in range(0, len(order_N), config.bags_per_step):
            self._step(order_N[start : start + config.bags_per_step], rng)

    def _step(self, rows_B: np.ndarray, rng: np.random.Generator) -> None:
        sizes = self.bags.sizes_N[rows_B].tolist()
        chosen = [np.sort(rng.choice(size, self.packing.sample_size(size), replace=False)) for size in sizes]
        samples_TD = self.bags.scattered(rows_B, chosen, torch.float32).to(self._device)
        packs = Packs.of(samples_TD.split([len(each) for each in chosen]), self.packing.length)
        logits_BC = self.network.head(embeddings(self.network, packs))
        labels_B = torch.from_numpy(self.bags.labels_N[rows_B])[packs.order].to(self._device)
        loss = functional.cross_entropy(logits_BC, labels_B)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()

    @torch.no_grad()
    def write_to(self, network: BagModel) -> BagModel:
        """Copy the weights into a network of ours, which predicts whole slides; returns that one."""
        for given, own in zip(layers_of(network), _layers(self.network), strict=True):
            given.weight.copy_(own.weight)
            if own.bias is not None:
                given.bias.copy_(own.bias)
        return network


def layers_of(network: BagModel) -> list[nn.Linear]:
    """The linear layers of a network of ours, in the order of a slide's way through it."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def _layers(network: NaiveAttentionMIL) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]
