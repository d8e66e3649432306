"""`TrainConfig`: every setting of a training run, with its unit and range, validated on construction.

A configuration is frozen; `override` makes a changed copy from dotted paths such as
`{"masking.high.start": 0.03}`. Sweeps, presets and the command line all change settings this way.
"""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from mhimdist.config.method import Loss, Masking, Momentum, Teacher
from mhimdist.config.models import (
    ALL_MODEL_NAMES,
    CLAM,
    DTFD,
    EXTENSIONS,
    AttentionMIL,
    ModelSettings,
    Pooling,
    Settings,
)
from mhimdist.config.nearest import did_you_mean
from mhimdist.config.schedules import Schedule
from mhimdist.config.tasks import TASK_NAMES, AutoTask, SurvivalTask, TaskSettings
from mhimdist.errors import ConfigError

_TAGS = {"model": ALL_MODEL_NAMES, "task": TASK_NAMES}
"""What the settings are called that choose among several groups, and the names of the groups."""


class ConfigWarning(UserWarning):
    """A setting has no effect in this combination."""


class Optimizer(Settings):
    """Adam, with a learning rate that decays after each epoch."""

    learning_rate: float = Field(
        2e-4, gt=0, description="learning rate of the first epoch, at one bag per step"
    )
    rate_rule: Literal["none", "sqrt", "linear"] = Field(
        "none",
        description="factor on the learning rate when a step has more than one bag; none: 1; sqrt: the "
        "square root of train.bags-per-step; linear: train.bags-per-step",
    )
    weight_decay: float = Field(1e-5, ge=0, description="L2 penalty added to the gradient")
    decay: Literal["cosine", "constant", "step"] = Field(
        "cosine",
        description="decay of the learning rate; cosine: every epoch, towards 0; constant: no decay; step: "
        "to a fifth after half of the epochs",
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="largest norm of a step's gradient, clipped separately per tier in dtfd; none: no limit",
    )

    def rate(self, epoch: int, epochs: int, bags_per_step: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: number of the epoch, from 0.
            epochs: number of epochs of the whole run.
            bags_per_step: number of bags per step; scales the rate by `rate_rule`.
        """
        peak = (
            self.learning_rate
            * {"none": 1, "sqrt": bags_per_step**0.5, "linear": bags_per_step}[self.rate_rule]
        )
        match self.decay:
            case "cosine":
                return peak * (1 + math.cos(math.pi * epoch / epochs)) / 2
            case "step":
                return peak * (0.2 if epoch >= epochs / 2 else 1)
            case "constant":
                return peak


class Loading(Settings):
    """How features reach the training step; none of it changes a result, so a run may resume with others."""

    reader: Literal["mmap", "dali"] = Field(
        "mmap",
        description="reader of the training batches; mmap: maps the shards into memory; dali: NVIDIA DALI, "
        "decodes in its own threads and converts on the GPU if the run has one",
    )
    cache: Literal["none", "ram", "device"] = Field(
        "none",
        description="keep the whole data set in memory; ram: one copy per node in shared memory, converted "
        "for a CPU; device: as stored, one copy per process on the model's device",
    )
    read_ahead: bool = Field(True, description="prepare the next batch in the background; mmap reader only")
    verify: Literal["first_read", "never"] = Field(
        "first_read", description="when each process checks a bag against its checksum"
    )
    shard_cache: Path | None = Field(
        None,
        description="folder on each node for copies of remote shards (default: MHIMDIST_SHARD_CACHE, "
        "otherwise one in the node's temporary folder)",
    )
    shard_cache_gib: float = Field(
        200.0,
        gt=0,
        description="largest size of that folder in GiB; the least recently used shards are removed first",
    )


class EarlyStopping(Settings):
    """When to stop waiting for a better validation score, which is the AUC for classes."""

    patience: int | None = Field(
        None, ge=1, description="epochs without a better validation score before the run stops; none: never"
    )
    from_epoch: int = Field(0, ge=0, description="number of first epochs after which a run may stop early")


class TrainConfig(Settings):
    """The configuration of one training run, on one split with one seed.

    Raises:
        pydantic.ValidationError: a value is out of its range, or a field does not exist; `load_config` and
            `override` raise the same as a `ConfigError` that names the field.

    Example:
        >>> config = mh.TrainConfig().override({"masking.high.start": 0.03, "epochs": 25})
        >>> config.masking.high.start, config.epochs
        (0.03, 25)
    """

    features: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]+(\+[A-Za-z0-9_-]+)*$",
        description="feature set to train on, if the data have several by name; a+b puts two side by side, "
        "if their coordinates agree; none: the only one",
    )
    model: ModelSettings = Field(AttentionMIL(), description="the bag model of student and teacher")
    task: TaskSettings = Field(AutoTask(), description="what a bag's label means; auto: what the data say")
    masking: Masking = Field(Masking(), description="which instances are hidden from the student")
    teacher: Teacher = Field(Teacher(), description="the network that scores the instances")
    student_init: Literal["none", "projection", "all"] = Field(
        "projection", description="weights of the pre-trained network that the student starts from"
    )
    loss: Loss = Field(Loss(), description="what training minimises")
    optimizer: Optimizer = Field(Optimizer(), description="how training minimises it: Adam")
    epochs: int = Field(200, ge=1, description="passes over the training bags")
    bags_per_step: int = Field(1, ge=1, description="most bags per optimiser step, over all workers")
    max_instances: int | None = Field(
        None,
        ge=1,
        description="most instances per optimiser step, over all workers; a larger bag gets a step to "
        "itself; none: no limit",
    )
    instances_per_bag: int | None = Field(
        None,
        ge=1,
        description="train on so many instances of a bag, drawn anew at random in each epoch; only these are "
        "read; none: whole bags",
    )
    instances_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="train on this share of a bag's instances, drawn in the same way, in (0, 1]; with "
        "instances-per-bag on no more than either allows",
    )
    evaluation_samples: int | None = Field(
        None,
        ge=1,
        description="evaluate by the mean over so many samples of a bag, of the same size as in training; "
        "none: by the whole bag",
    )
    sampling: Literal["each_bag_once", "class_balanced"] = Field(
        "each_bag_once",
        description="bags of an epoch; class_balanced: the same number of bags, every class equally often",
    )
    early_stopping: EarlyStopping = Field(EarlyStopping(), description="when to stop before the last epoch")
    seed: int = Field(2021, ge=0, description="seed of the weights, the order of bags, masks and dropout")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device to train on; auto: a GPU if there is one"
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="precision of matrix products and features; auto: float32 on a CPU, bf16 on a GPU. "
        "Weights, scores, softmaxes, losses and optimiser are always float32",
    )
    tf32: bool = Field(
        False, description="let a GPU round the factors of float32 products to 10 bits of mantissa (TF32)"
    )
    loading: Loading = Field(Loading(), description="how features reach the step; changes no result")
    compile: bool = Field(
        False,
        description="use torch.compile for the part after the pooling, the losses of the bags: fewer kernel "
        "launches on a GPU, slower on a CPU; needs a C++ compiler",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        "auto",
        description="record steps as CUDA graphs, one graph for all steps of similar size, so that the host "
        "launches a step at once; needs a GPU, and a model that reads no sizes on the host. auto: where that "
        "is so; on: refuse the run where it is not",
    )

    @field_validator("cuda_graphs", mode="before")
    @classmethod
    def _from_switch(cls, value: Any) -> Any:
        """Files of earlier releases have a switch here."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.teacher.kind == "none":
            if self.masking.strategy not in ("none", "random"):
                raise ValueError("masking by score needs a teacher, but teacher.kind is none")
            if self.loss.alpha:
                raise ValueError("loss.alpha must be 0 without a teacher, but teacher.kind is none")
        has_scores = getattr(self.model, "has_scores", not isinstance(self.model, Pooling | CLAM | DTFD))
        if not has_scores and self.teacher.kind != "none":
            raise ValueError(f"{self.model.name} has no scores to mask by; set teacher.kind to none")
        if self.evaluation_samples is not None and not self.trains_on_sub_bags:
            raise ValueError(
                "evaluation_samples needs the size of a sample: set instances_per_bag or instances_share"
            )
        if self.cuda_graphs == "on" and self.device == "cpu":
            raise ValueError("cuda_graphs needs a CUDA device, but device is cpu")
        return self

    @property
    def trains_on_sub_bags(self) -> bool:
        """Whether training sees samples of the bags."""
        return self.instances_per_bag is not None or self.instances_share is not None

    def without_effect(self) -> list[str]:
        """The settings that differ from their defaults but change nothing in this combination, and why."""
        found = []
        if self.loss.alpha == 0 and self.loss.temperature != Loss().temperature:
            found.append("loss.temperature: loss.alpha is 0")
        if self.loading.cache != "none" and self.loading.reader == "dali":
            found.append(f"loading.reader: loading.cache is {self.loading.cache}, so dali decodes nothing")
        if not self.teacher.has_momentum and self.teacher.momentum != Momentum():
            found.append(f"teacher.momentum: a teacher of kind {self.teacher.kind} does not move")
        if self.teacher.weights is not None and not self.teacher.is_pretrained:
            found.append(f"teacher.weights: a teacher of kind {self.teacher.kind} is not pre-trained")
        if self.teacher.weights is None and self.teacher.weights_of != "model":
            found.append("teacher.weights_of: teacher.weights is none")
        if not self.masking.high.peak and self.masking.high_pool_share != 1:
            found.append("masking.high_pool_share: masking.high is 0")
        if self.masking.ranking is not None and not (self.masking.high.peak or self.masking.low.peak):
            found.append("masking.ranking: masking.high and masking.low are 0")
        if not self.teacher.is_pretrained and self.student_init == "all":
            found.append(f"student_init: a teacher of kind {self.teacher.kind} has no pre-trained network")
        if isinstance(self.task, SurvivalTask):
            found += [f"task.{field}: {why}" for field, why in self.task.without_effect()]
        for field, schedule in self._schedules().items():
            if schedule.kind == "constant" and schedule.end != type(schedule)().end:
                found.append(f"{field}.end: the schedule is constant")
        return found

    def _schedules(self) -> dict[str, Schedule]:
        return {
            "masking.high": self.masking.high,
            "masking.low": self.masking.low,
            "masking.random": self.masking.random,
            "teacher.momentum": self.teacher.momentum,
        }

    def first_stage(self) -> "TrainConfig":
        """The run that trains the pre-trained network: same network, data order and seed, without masking."""
        return self.model_copy(
            update={
                "masking": Masking(),
                "teacher": Teacher(kind="none"),
                "student_init": "none",
                "loss": Loss(alpha=0, class_weights=self.loss.class_weights),
            }
        )

    def override(self, changes: Mapping[str, Any]) -> "TrainConfig":
        """A copy with other values at dotted paths, such as `{"masking.high.start": 0.03, "epochs": 25}`.

        A change of `model.name` or `task.name` drops the settings of the old model or task.

        Raises:
            ConfigError: a path or a value is invalid; the message lists the valid keys.
        """
        tree = self.model_dump(exclude_unset=True)
        for group in _TAGS:
            own = getattr(self, group).name
            if changes.get(f"{group}.name", own) != own:
                tree[group] = {"name": changes[f"{group}.name"]}
            elif group in tree or any(path.startswith(f"{group}.") for path in changes):
                tree.setdefault(group, {}).setdefault("name", own)
        for path, value in changes.items():
            *parents, leaf = path.split(".")
            node = tree
            for parent in parents:
                inner = node.setdefault(parent, {})
                if not isinstance(inner, dict):
                    raise ConfigError(f"{path}: {parent} is a single value, not a group of settings")
                node = inner
            node[leaf] = value
        return load_config(tree)

    @property
    def title(self) -> str:
        """The model, whether MHIM masks for it, and the feature set if it was chosen: "MHIM (abmil), uni"."""
        name = self.model.name if self.teacher.kind == "none" else f"MHIM ({self.model.name})"
        return name if self.features is None else f"{name}, {self.features}"

    def recipe(self) -> dict[str, Any]:
        """Every setting that a result depends on, in JSON types, so not how steps are fed and launched."""
        recipe = self.model_dump(mode="json", exclude={"loading", "compile", "cuda_graphs"})
        if self.teacher.weights is None:
            del recipe["teacher"]["weights_of"]
        if self.masking.ranking is None:  # earlier releases have no such setting
            del recipe["masking"]["ranking"]
        if self.task == AutoTask():  # the data say it, and the digests of earlier releases stay
            del recipe["task"]
        # Whole bags of the only features, for which earlier releases have no setting.
        for setting in ("features", "instances_per_bag", "instances_share", "evaluation_samples"):
            if recipe[setting] is None:
                del recipe[setting]
        return recipe

    def digest(self) -> str:
        """A hash of the recipe, 16 hex digits; equal recipes share it."""
        text = json.dumps(self.recipe(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def load_config(tree: Mapping[str, Any]) -> TrainConfig:
    """Make a configuration from nested settings; settings without effect cause a `ConfigWarning`.

    Raises:
        ConfigError: a setting is invalid; one line names the field and the value and, for an unknown key,
            lists the valid keys.
    """
    try:
        config = _validated(tree)
    except RecursionError:  # in the validation, or in the words about it
        raise ConfigError("configuration: its settings nest too deep") from None
    for setting in config.without_effect():
        warnings.warn(f"no effect: {setting}", ConfigWarning, stacklevel=2)
    return config


def _validated(tree: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(item) for item in error.errors())) from None


def explain(item: Any) -> str:
    """One of pydantic's errors in one line: where it is, what was expected and what was got."""
    # The location in a union contains its member's tag ("model", "abmil", "gated"), which is not in the path.
    all_tags = {tag for tags in _TAGS.values() for tag in tags}
    is_unknown = (
        item["type"] == "extra_forbidden"
    )  # the last part is then a key, even if it is called "abmil"
    path: list[str] = [
        str(part) for part in item["loc"][: -1 if is_unknown else None] if part not in all_tags
    ]
    where = ".".join(path) or "configuration"
    if is_unknown:
        parents, unknown = path, str(item["loc"][-1])
        where = ".".join([*parents, unknown])
        valid = _valid_keys(parents, [part for part in item["loc"][:-1] if part in all_tags])
        elsewhere = owners(parents, unknown)
        hint = f" (it belongs to {elsewhere})" if elsewhere else did_you_mean(unknown, valid)
        return f"{where}: unknown key{hint}; valid here: {', '.join(valid)}"
    if item["type"] == "union_tag_invalid":
        tag, tags = item["ctx"]["tag"], _TAGS[path[-1]]
        if path[-1] == "model" and tag in EXTENSIONS.refused:
            return f"{where}.name: {EXTENSIONS.refused[tag]}"
        return f"{where}.name: no {path[-1]} {tag!r}{did_you_mean(tag, tags)}; valid: {', '.join(tags)}"
    if item["type"] == "missing":
        return f"{where}: expected a value, got none"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{where}: {message}"
    near = did_you_mean(str(item["input"]), _quoted(message)) if item["type"] == "literal_error" else ""
    return f"{where}: {message}, got {item['input']!r}{near}"


def _quoted(message: str) -> list[str]:
    """The words in quotes: of one of pydantic's errors about choices, the choices."""
    return re.findall(r"'([^']*)'", message)


def owners(parents: Sequence[str], key: str) -> str:
    """Which choices of a group, such as `task.name survival`, have a setting; empty if none has.

    Args:
        parents: the path to the group, such as `["task"]`.
        key: the setting.
    """
    if not parents or parents[-1] not in _TAGS:
        return ""
    names = [tag for tag in _TAGS[parents[-1]] if key in _valid_keys(parents, [tag])]
    return f"{'.'.join(parents)}.name {' or '.join(names)}" if names else ""


def _valid_keys(parents: Sequence[str], tags: Sequence[Any]) -> list[str]:
    node = _schema()
    definitions = node["$defs"]
    for parent in parents:
        node = node["properties"][parent]
        if "oneOf" in node:
            reference = node["discriminator"]["mapping"][tags[0] if tags else _TAGS[parent][0]]
        else:
            reference = node.get("$ref") or node["allOf"][0]["$ref"]
        node = definitions[reference.rsplit("/", 1)[-1]]
    return sorted(node["properties"])


@cache
def _schema() -> dict[str, Any]:
    return TypeAdapter(TrainConfig).json_schema()
