"""What the parts train on: networks of the paper's presets, random bags, and a small data set of shards.

Dimensions: N instances of a bag, T instances of a batch, B bags of a batch, D features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.setting import Setting
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import PackedBags, bag_id
from mhimdist.data.targets import CLASSIFICATION
from mhimdist.errors import ConfigError
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel, build
from mhimdist.ops.draws import Draws
from mhimdist.training.graphed_step import GraphedStep
from mhimdist.training.step import TrainingStep
from mhimdist.training.workers import Workers

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def config_of(
    setting: Setting, model: str, precision: str, *, graphs: bool = False, **more: Any
) -> TrainConfig:
    """The paper's settings for CAMELYON16.

    Raises:
        ConfigError: the model cannot be recorded as a graph.
    """
    changes = {"device": setting.device, "precision": precision, **more}
    return preset("c16", model).override(changes | {"cuda_graphs": "on" if graphs else "off"})


def step_of(
    setting: Setting,
    config: TrainConfig,
    *,
    graphs: bool = False,
    workers: Workers | None = None,
    num_bags: int = 1,
) -> TrainingStep:
    """The training step on new networks on the configuration's device; equal settings make equal weights.

    Args:
        setting: the width of the features.
        config: the other settings.
        graphs: whether to record the steps.
        workers: the processes that share a step; None for this one alone.
        num_bags: most bags in a step.

    Raises:
        ConfigError: steps of that many bags cannot be recorded.
    """
    student = build(config.model, num_features=setting.num_features, num_classes=2, seed=0)
    student = student.to(config.device)
    teacher = Teacher(config.teacher, student, student) if config.teacher.kind != "none" else None
    if not graphs:
        return TrainingStep(config, student, teacher, workers)
    if stated_waits(student, num_bags):
        raise ConfigError(f"a step of {num_bags} bag(s) of {config.model.name} waits for the device")
    return GraphedStep(config, student, teacher, workers, most_rows=num_bags * setting.num_instances)


def bags_of(
    setting: Setting, sizes: Sequence[int], dtype: torch.dtype, *, device: str | None = None
) -> list[PackedBags]:
    """A batch of one bag for each size, on the device; the same sizes make the same bags."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, size in enumerate(sizes):
        features_ND = torch.rand(size, setting.num_features, generator=generator).to(dtype)
        bag = PackedBags.from_list([features_ND], [number % 2], [f"bag-{number}"])
        found.append(bag.to(device or setting.device))
    return found


def together(batches: Sequence[PackedBags]) -> PackedBags:
    """All bags of some batches of one bag, as one batch on the same device."""
    features = [batch.features_TD for batch in batches]
    labels, keys = [number % 2 for number in range(len(batches))], [batch.keys[0] for batch in batches]
    return PackedBags.from_list([each.cpu() for each in features], labels, keys).to(features[0].device)


def runner(step: TrainingStep, batches: Sequence[PackedBags]) -> Callable[[], object]:
    """A function that trains on one batch after the other, and begins a new epoch after the last."""
    number = 0

    def work() -> object:
        nonlocal number
        batch, epoch = batches[number % len(batches)], number // len(batches)
        number += 1
        return step(batch, Draws(0, epoch), progress=0.1, num_bags=len(batch))

    return work


def weights_of(step: TrainingStep) -> Tensor:
    """All weights of the student in one vector on the CPU."""
    return torch.cat([parameter.detach().cpu().flatten() for parameter in step.student.parameters()])


def stated_waits(student: BagModel, num_bags: int) -> int:
    """How often the documentation says that a step waits for the device."""
    return int(student.waits_for_sizes(num_bags))


class MemoryBags:
    """A data set in memory that is read as `BagShards` reads its own.

    Attributes:
        See `BagSource`.
    """

    def __init__(self, setting: Setting, num_bags: int, dtype: torch.dtype) -> None:
        """Make the bags: one of random features, and the others with its columns in other places."""
        shape = setting.num_instances, setting.num_features
        one_ND = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.features = [one_ND.roll(number, 1).contiguous() for number in range(num_bags)]
        self.keys = tuple(f"bag-{number}" for number in range(num_bags))
        self.cases, self.classes, self.digest, self.dtype = self.keys, ("a", "b"), "memory", dtype
        self.labels_N, self.sizes_N = np.arange(num_bags) % 2, np.full(num_bags, shape[0])
        self.ids_N = np.array([bag_id(key) for key in self.keys])
        self.task, self.targets_NK = CLASSIFICATION, np.zeros((num_bags, 0))
        self.num_features = shape[1]

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Row numbers of bags, int64."""
        return np.array([self.keys.index(key) for key in keys])

    def load(
        self, rows: Sequence[int], dtype: torch.dtype = torch.float32, *, out: Tensor | None = None
    ) -> PackedBags:
        """See `BagSource.load`."""
        rows_B = np.asarray(rows, np.int64)
        if len(rows_B) == 1 and self.dtype == dtype:
            return PackedBags.of_rows(self, rows_B, self.features[rows_B[0]])
        sizes = self.sizes_N[rows_B].tolist()
        shape = sum(sizes), self.num_features
        features_TD = out[: shape[0]] if out is not None else torch.empty(shape, dtype=dtype)
        for part_ND, row in zip(features_TD.split(sizes), rows_B, strict=True):
            part_ND.copy_(self.features[row])
        return PackedBags.of_rows(self, rows_B, features_TD)


def write_shards(folder: Path, setting: Setting, num_bags: int) -> None:
    """Write the bags of `MemoryBags` as one fp16 shard with its manifest, as `data_prep.shard` would."""
    import pyarrow as pa

    from data_prep.writing.writer import Bag, Payload, ShardWriter
    from mhimdist.data.format import FEATURE_DTYPES, npy_header, shard_name
    from mhimdist.data.manifest import ROWS_SCHEMA, DatasetInfo, Manifest

    bags, rows = MemoryBags(setting, num_bags, torch.float16), []
    with ShardWriter(folder / shard_name(0)) as writer:
        for key, label, features_ND in zip(bags.keys, bags.labels_N.tolist(), bags.features, strict=True):
            array_ND = features_ND.numpy()
            header = npy_header(FEATURE_DTYPES["float16"], array_ND.shape)
            features = Payload(len(header) + array_ND.nbytes, [header, array_ND])
            columns = {
                **{"key": key, "slide": key, "case": key, "label": label, "dtype": "float16"},
                **{"num_instances": array_ND.shape[0], "num_features": array_ND.shape[1]},
            }
            rows.append(writer.add(Bag(columns, {"features": features, "json": b"{}"})))
    info = DatasetInfo(
        name="gpu-check",
        classes=bags.classes,
        synthetic=True,
        description="random features",
        shards=(writer.summary,),
    )
    Manifest(info, pa.Table.from_pylist(rows, ROWS_SCHEMA)).write(folder)
