"""What masks do over a run, measured after each epoch on a few training bags.

A mask follows from the teacher's scores and from keyed draws of (seed, epoch, bag), so it can be formed again
outside the training step, which knows nothing of this module. The bags are the same in every epoch. Together
they have at most a fiftieth of the instances that train, because two networks look at each of them again.

Dimensions: N instances of a bag, H heads of scores.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhimdist import ops
from mhimdist.config.train import Loading, TrainConfig
from mhimdist.data.bags import BagSource, PackedBags
from mhimdist.data.read_ahead import read_ahead
from mhimdist.method import precision
from mhimdist.method.masking import MASKS, hidden_by, ranked
from mhimdist.method.step_numbers import StepNumbers
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.ops.draws import Draws
from mhimdist.training.history import MaskFigures
from mhimdist.training.workers import Workers

SHARE = 0.02
"""Most instances of the sample, as a share of those that train."""
MOST_BAGS = 32


NAMES = tuple(field.name for field in fields(MaskFigures))

Masks = dict[str, Tensor]
"""The masks of the last epoch: per mask and bag, the bits of its instances, uint8."""


@dataclass(frozen=True)
class _Seen:
    """What was seen of a bag.

    Attributes:
        hidden: per mask, the bits of the instances that it hides.
        agreement: rank correlation of teacher and student.
        positives: the number of positive instances, and how many of them each mask hides.
    """

    hidden: dict[str, np.ndarray]
    agreement: float | None
    positives: dict[str, int] | None


class MaskTelemetry:
    """Measures the masks of one run."""

    def __init__(
        self,
        config: TrainConfig,
        student: BagModel,
        teacher: Teacher | None,
        bags: BagSource,
        train_rows_N: np.ndarray,
        labelled: Any,
    ) -> None:
        """Choose the bags; nothing is read yet.

        Args:
            config: the run's settings.
            student, teacher: the networks, on their device.
            bags: the data set.
            train_rows_N: rows of the bags that train.
            labelled: the data set as it was opened; its `instance_labels` are used if it has any.
        """
        self.config, self.student, self.teacher, self.bags = config, student, teacher, bags
        masking = config.masking
        ratios = (masking.high, masking.low, masking.random)
        self._masks = any(ratio.at(share) > 0 for ratio in ratios for share in (0.0, 1.0))
        self._compares = teacher is not None and teacher.is_own_network
        self.rows = sample(bags, train_rows_N, config.seed) if self._masks or self._compares else ()
        self._labels_of = getattr(labelled, "instance_labels", None)

    def measure(self, epoch: int, before: Masks, workers: Workers) -> tuple[MaskFigures, Masks]:
        """Measure the masks of an epoch that is ending; all workers must call this.

        Args:
            epoch: counted from 0.
            before: the masks of the epoch before; empty if they are not known.
            workers: each looks at its share of the bags.

        Returns:
            The figures and the masks, the same on every worker.
        """
        if not self.rows:
            return MaskFigures(), {}
        mine = self.rows[workers.rank :: workers.world_size]
        parts = workers.gather(self._look(epoch, mine))
        seen = [parts[i % len(parts)][i // len(parts)] for i in range(len(self.rows))]
        masks = {
            f"{name}-{i}": torch.from_numpy(bits)
            for i, each in enumerate(seen)
            for name, bits in each.hidden.items()
        }
        agreements = [each.agreement for each in seen if each.agreement is not None]
        figures = MaskFigures(
            mask_overlap=_overlap("all", before, masks),
            high_mask_overlap=_overlap("high", before, masks),
            rank_agreement=fmean(agreements) if agreements else None,
            **_positives(seen),
        )
        return figures, masks

    @torch.inference_mode()
    def _look(self, epoch: int, rows: Sequence[int]) -> list[_Seen]:
        if not rows:
            return []
        device = next(self.student.parameters()).device
        dtype = precision.compute_dtype(self.config.precision, device)
        step = StepNumbers.of(
            self.config.masking, Draws(self.config.seed, epoch), (epoch + 1) / self.config.epochs
        )
        quiet = Loading(read_ahead=False)
        with read_ahead(
            self.bags, [[row] for row in rows], dtype=dtype, device=device, loading=quiet
        ) as batches:
            return [self._look_at(packed, row, step) for packed, row in zip(batches, rows, strict=True)]

    def _look_at(self, packed: PackedBags, row: int, step: StepNumbers) -> _Seen:
        offsets_B1, ids_B = packed.offsets_B1.cpu(), packed.ids_B.cpu()
        numbers = ops.bag_numbers(offsets_B1, ids_B, step.ratios_4, step.streams_S)
        scores_NH, salience_NH, agreement = None, None, None
        if self.teacher is not None:
            keys_B = numbers.teacher_dropout_B.to(packed.ids_B.device)
            found_NH = self.teacher.score(packed, keys_B).scores_TH
            scores_NH = _on_host(found_NH)
            salience_NH = _on_host(ranked(self.config.masking, found_NH, packed))
            if self._compares and scores_NH is not None:
                output = precision.call(self.student, packed.features_TD.dtype, packed, None)
                agreement = rank_agreement(scores_NH, _on_host(output.scores_TH))
        if not self._masks:
            return _Seen({}, agreement, None)
        found = hidden_by(salience_NH, offsets_B1, numbers)
        hidden = {name: mask_N.numpy() for name, mask_N in found.items()}
        positives = None
        labels_N = self._labels_of(row) if self._labels_of is not None else None
        if labels_N is not None:
            is_positive_N = labels_N > 0
            positives = {name: int((mask_N & is_positive_N).sum()) for name, mask_N in hidden.items()}
            positives["number"] = int(is_positive_N.sum())
        kept = {name: np.packbits(hidden[name]) for name in ("all", "high")}
        return _Seen(kept, agreement, positives)


def sample(bags: BagSource, rows_N: np.ndarray, seed: int) -> tuple[int, ...]:
    """Bags to look at, in an order that the seed decides, the classes in turn; at least one bag.

    Args:
        bags: the data set.
        rows_N: rows to choose from.
        seed: of the run.
    """
    by_class: dict[int, list[int]] = {}
    for row in sorted(rows_N.tolist(), key=lambda row: _place(seed, bags.keys[row])):
        by_class.setdefault(int(bags.labels_N[row]), []).append(row)
    queues = [by_class[label] for label in sorted(by_class, reverse=True)]  # positive classes come last
    turns = [
        row for place in range(max(map(len, queues))) for row in (q[place] for q in queues if place < len(q))
    ]
    left = SHARE * float(bags.sizes_N[rows_N].sum())
    chosen: list[int] = []
    for row in turns:
        if len(chosen) < MOST_BAGS and bags.sizes_N[row] <= left:
            chosen.append(row)
            left -= float(bags.sizes_N[row])
    return tuple(chosen) or (min(queues[0], key=lambda row: int(bags.sizes_N[row])),)


def rank_agreement(first_NH: Tensor, second_NH: Tensor | None) -> float | None:
    """Spearman's correlation between two networks' scores of a bag, the mean over the heads.

    None if it is undefined: a bag of one instance, or scores that are all equal.
    """
    found = []
    for first_N, second_N in zip(first_NH.T, () if second_NH is None else second_NH.T, strict=False):
        ranks_2N = np.stack([_ranks(first_N.numpy()), _ranks(second_N.numpy())])
        ranks_2N -= ranks_2N.mean(1, keepdims=True)
        norms_2 = np.sqrt((ranks_2N**2).sum(1))
        if norms_2.all():
            found.append(float(ranks_2N[0] @ ranks_2N[1] / norms_2.prod()))
    return fmean(found) if found else None


def _ranks(scores_N: np.ndarray) -> np.ndarray:
    """The ranks of scores, float64; equal ones share the mean of theirs."""
    _, place_N, count_U = np.unique(scores_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count_U) - (count_U - 1) / 2)[place_N]


def _place(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}/telemetry/{key}".encode(), digest_size=8).digest()


def _on_host(scores_NH: Tensor | None) -> Tensor | None:
    return None if scores_NH is None else scores_NH.float().cpu()


def _overlap(name: str, before: Masks, masks: Masks) -> float | None:
    """Mean Jaccard index over the bags whose mask of this name is known of both epochs and hides anything."""
    found = []
    for key, bits in masks.items():
        other = before.get(key)
        if not key.startswith(f"{name}-") or other is None or other.shape != bits.shape:
            continue
        both, either = (_count(bits & other), _count(bits | other))
        if either:
            found.append(both / either)
    return fmean(found) if found else None


def _count(bits: Tensor) -> int:
    return int(np.bitwise_count(bits.cpu().numpy()).sum())


def _positives(seen: Sequence[_Seen]) -> dict[str, float | None]:
    known = [each.positives for each in seen if each.positives is not None]
    total = sum(each["number"] for each in known)
    if not total:
        return {}
    shares = {name: sum(each[name] for each in known) / total for name in MASKS}
    return {
        "positives_hidden" if name == "all" else f"positives_hidden_{name}": share
        for name, share in shares.items()
    }
