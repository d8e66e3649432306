"""What the masks of a run hide of a slide, epoch by epoch, recomputed from the run's checkpoints.

A mask follows from the teacher's scores and from keyed draws of (seed, epoch, bag), so a checkpoint at the
end of epoch e gives the mask with which epoch e + 1 starts. Within an epoch the teacher moves on, so these
are the masks of a bag that the epoch begins with. Only epochs whose checkpoints the run has kept can be
shown; a finished fold keeps none.

Dimensions: N patches of a slide.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from mhimdist import ops
from mhimdist.config.train import Masking, TrainConfig
from mhimdist.data.bags import PackedBags
from mhimdist.data.format import escape_key
from mhimdist.data.shards import BagShards
from mhimdist.errors import CheckpointError, DataError
from mhimdist.heatmaps import raster
from mhimdist.heatmaps.picture import printable
from mhimdist.heatmaps.places import Places
from mhimdist.heatmaps.slides import Region
from mhimdist.method.masking import mask_bags, most_kept
from mhimdist.method.precision import compute_dtype
from mhimdist.method.step_numbers import StepNumbers
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws
from mhimdist.training import checkpoint

SEEN, SALIENT, OTHER = "#dde1e5", "#D55E00", "#56B4E9"
_LEGEND = (
    (SALIENT, "hidden as salient"),
    (OTHER, "hidden by the low or random mask"),
    (SEEN, "seen by the student"),
)


@dataclass(frozen=True, eq=False)
class EpochMask:
    """The mask of a slide at the start of an epoch.

    Attributes:
        epoch: counted from 1.
        hidden_N: whether the student does not see a patch, bool, N.
        salient_N: whether the high mask, which follows the teacher's attention, hides it, bool, N.
    """

    epoch: int
    hidden_N: np.ndarray
    salient_N: np.ndarray


class Masks:
    """The masks of a run."""

    def __init__(self, run: Path, bags: BagShards, most: int = 6) -> None:
        """Find the run's checkpoints at ends of epochs.

        Args:
            run: folder of the run: of a fold that is not finished, or `folder` of `open_trainer`.
            bags: the data set that the run trains on.
            most: how many epochs to take, spread over those whose checkpoints are kept.

        Raises:
            CheckpointError: the folder is no run, does not mask, or has kept no checkpoint.
        """
        try:
            tree = json.loads((run / "config.json").read_text(encoding="utf-8"))
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
        none_B = torch.zeros_like(numbers.counts.low_B)
        high_only = replace(numbers, counts=replace(numbers.counts, low_B=none_B, random_B=none_B))
        hidden_N, salient_N = (
            _hidden(packed, scores_TH, each, masking, progress) for each in (numbers, high_only)
        )
        return EpochMask(epoch + 1, hidden_N, salient_N & hidden_N)

    def _teacher(self, folder: Path) -> Teacher:
        tensors, _ = checkpoint.load(folder)
        network = build(
            self.config.model,
            num_features=self.bags.num_features,
            num_classes=len(self.bags.classes),
            seed=self.config.seed,
        )
        try:
            network.load_state_dict(tensors.get("teacher", tensors["student"]))
        except RuntimeError as error:
            raise CheckpointError(f"{folder} does not fit {self.bags.folder}: {error}") from None
        settings = self.config.teacher.model_copy(update={"kind": "student_copy"})
        return Teacher(settings, network.eval(), None)


def _hidden(
    packed: PackedBags, scores_TH: Tensor | None, numbers: ops.BagNumbers, masking: Masking, progress: float
) -> np.ndarray:
    """Whether a mask hides each instance of one bag: bool, N."""
    size = len(packed.features_TD)
    capacity = most_kept(masking, size, 1, progress)
    _, selection = mask_bags(packed, scores_TH, numbers, capacity=capacity)
    hidden_N = np.ones(size, bool)
    hidden_N[selection.kept_K.numpy()] = False
    return hidden_N


def draw(
    masks: Sequence[EpochMask], slide: str, places: Places, view: Region, *, width_px: int, dpi: int
) -> Figure:
    """Draw the masks of a slide side by side, at most three in a row."""
    columns = min(len(masks), 3)
    lines = -(-len(masks) // columns)
    width = width_px / dpi
    room = (width - 0.3 - 0.12 * 2) / 3
    panel = (min(room, 0.8 * width / (view.height / view.width)), room * view.height / view.width)
    head, title = 0.68, 0.24
    height = head + lines * (panel[1] + title + 0.1) + 0.1
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    text = printable(f"{slide}: what the mask hides")
    figure.text(0.15 / width, 1 - 0.15 / height, text, va="top", size=12, weight="bold", parse_math=False)
    figure.legend(
        handles=[Patch(color=colour, label=label) for colour, label in _LEGEND],
        loc="upper left",
        bbox_to_anchor=(0.05 / width, 1 - 0.36 / height),
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    pixels = (max(1, round(panel[0] * dpi)), max(1, round(panel[1] * dpi)))
    for index, mask in enumerate(masks):
        left = 0.15 + index % columns * (room + 0.12)
        top = head + index // columns * (panel[1] + title + 0.1)
        box = (left / width, 1 - (top + title + panel[1]) / height, panel[0] / width, panel[1] / height)
        axes = figure.add_axes(box)
        share = f"{mask.hidden_N.mean():.1%} hidden, {mask.salient_N.sum():,} as salient"
        axes.set_title(f"start of epoch {mask.epoch}: {share}", fontsize=9, loc="left", pad=3)
        kind_N = np.select([mask.salient_N, mask.hidden_N], [0.0, 1.0], 2.0)
        kind_YX = raster.draw(kind_N, places, view, *pixels)
        colours_YX3 = np.ones((*kind_YX.shape, 3))
        for kind, (colour, _) in enumerate(_LEGEND):
            colours_YX3[np.rint(kind_YX) == kind] = to_rgb(colour)
        extent = (view.x, view.x + view.width, view.y + view.height, view.y)
        axes.imshow(colours_YX3, extent=extent, aspect="auto", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
    return figure
