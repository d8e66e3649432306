"""What the masks of a run hide of a slide, epoch by epoch, recomputed from the run's checkpoints.

A mask follows from the teacher's scores and from keyed draws of (seed, epoch, bag), so a checkpoint at the
end of epoch e gives the mask with which epoch e + 1 starts. Within an epoch the teacher moves on, so these
are the masks of a bag that the epoch begins with. Only epochs whose checkpoints the run has kept can be
shown; a finished fold keeps none.

Dimensions: N patches of a slide.
"""

from pathlib import Path

import numpy as np
import torch

from mhimdist import files, ops
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import PackedBags
from mhimdist.data.format import escape_key
from mhimdist.data.stored import StoredBags
from mhimdist.errors import CheckpointError, DataError
from mhimdist.heatmaps.mask_picture import EpochMask
from mhimdist.method.masking import hidden_by, ranked
from mhimdist.method.precision import compute_dtype
from mhimdist.method.step_numbers import StepNumbers
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.tasks import task_of
from mhimdist.training import checkpoint


def features_of(run: Path) -> str | None:
    """The feature set that a run trains on; None if it was not chosen, or if the folder is no run."""
    try:
        return files.parse_json((run / "config.json").read_text(encoding="utf-8")).get("features")
    except (OSError, ValueError, AttributeError):
        return None  # `Masks` says what is wrong


class Masks:
    """The masks of a run."""

    def __init__(self, run: Path, bags: StoredBags, most: int = 6) -> None:
        """Find the run's checkpoints at ends of epochs.

        Args:
            run: folder of the run: of a fold that is not finished, or `folder` of `open_trainer`.
            bags: the data set that the run trains on.
            most: how many epochs to take, spread over those whose checkpoints are kept.

        Raises:
            CheckpointError: the folder is no run, does not mask, or has kept no checkpoint.
        """
        try:
            tree = files.parse_json((run / "config.json").read_text(encoding="utf-8"))
            self.config = TrainConfig.model_validate(tree)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{run} is not the folder of a run: {error}") from None
        masking = self.config.masking
        if not any(
            ratio.at(share) for ratio in (masking.high, masking.low, masking.random) for share in (0, 1)
        ):
            raise CheckpointError(f"{run} does not mask: its ratios are 0, so there is nothing to show")
        folders = sorted((run / "checkpoints").glob("epoch-*-step-*"))
        ends = [path for path in folders if int(path.name.split("-")[3]) == 0]
        # The checkpoint after the last epoch starts no epoch.
        epoch_of = {path: int(path.name.split("-")[1]) for path in ends}
        ends = [path for path in ends if epoch_of[path] < self.config.epochs]
        if not ends:
            raise CheckpointError(
                f"{run} has kept no checkpoint at the end of an epoch: only runs in progress, and those of "
                "open_trainer with a folder, have some; Saving(keep_last=...) keeps more"
            )
        chosen = np.unique(np.linspace(0, len(ends) - 1, min(most, len(ends))).round().astype(int))
        self.bags = bags
        self._folders = [(epoch_of[ends[index]], ends[index]) for index in chosen]

    def of(self, slide: str, num_patches: int) -> list[EpochMask]:
        """The masks of a slide, the earliest epoch first.

        Args:
            slide: its name.
            num_patches: number of its patches in the prediction.

        Raises:
            CheckpointError: a checkpoint is damaged or of another network.
            DataError: the data set lacks the slide, or has another number of patches of it.
        """
        (row,) = self.bags.rows_of([escape_key(slide)]).tolist()
        dtype = compute_dtype(self.config.precision, torch.device("cpu"))
        packed = self.bags.load([row], dtype)
        if len(packed.features_TD) != num_patches:
            raise DataError(
                f"slide {slide!r} has {len(packed.features_TD)} patches in {self.bags.folder}, and "
                f"{num_patches} in the prediction: give the data that was predicted"
            )
        return [self._mask(epoch, folder, packed) for epoch, folder in self._folders]

    def _mask(self, epoch: int, folder: Path, packed: PackedBags) -> EpochMask:
        masking = self.config.masking
        progress = epoch / self.config.epochs
        step = StepNumbers.of(masking, Draws(self.config.seed, epoch), progress)
        numbers = ops.bag_numbers(packed.offsets_B1, packed.ids_B, step.ratios_4, step.streams_S)
        scores_TH = None
        if self.config.teacher.kind != "none":
            scores_TH = self._teacher(folder).score(packed, numbers.teacher_dropout_B).scores_TH
            scores_TH = ranked(masking, scores_TH, packed)
        hidden = hidden_by(scores_TH, packed.offsets_B1, numbers)
        hidden_N, salient_N = hidden["all"].numpy(), hidden["high"].numpy()
        return EpochMask(epoch + 1, hidden_N, salient_N & hidden_N)

    def _teacher(self, folder: Path) -> Teacher:
        tensors, _ = checkpoint.load(folder)
        network = build(
            self.config.model,
            num_features=self.bags.num_features,
            task=task_of(self.bags, self.config.task),
            seed=self.config.seed,
        )
        try:
            network.load_state_dict(tensors.get("teacher", tensors["student"]))
        except RuntimeError as error:
            raise CheckpointError(f"{folder} does not fit {self.bags.folder}: {error}") from None
        settings = self.config.teacher.model_copy(update={"kind": "student_copy"})
        return Teacher(settings, network.eval(), None)
