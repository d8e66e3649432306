"""The trained networks of an ensemble: which they are, and whether they belong together."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhimdist import files
from mhimdist.config.sub_bags import evaluation_text
from mhimdist.config.train import TrainConfig
from mhimdist.data.splits import Split
from mhimdist.data.stored import BagOf
from mhimdist.errors import CheckpointError, ConfigError
from mhimdist.tasks import Task, restored
from mhimdist.training import checkpoint
from mhimdist.training.folds import RESULT_FILE
from mhimdist.training.student import BEST_STUDENT

HOLDERS = ("folds", "final")
"""Where a cross-validation and a sweep have the folders of their folds."""
PREFERRED = ("nested", "strict", "refit")
"""The protocols whose networks are taken from a folder of several, the first that it has."""


@dataclass(frozen=True)
class Member:
    """A trained network, as its folder describes it.

    Attributes:
        folder: the folder of its fold.
        digest: hash of its weights and of how it is built.
        name: of its configuration, as in the tables of a cross-validation.
        feature_set: the feature set that it was trained on, if it was chosen by name.
        recipe: digest of its configuration without the seed; the same for all folds of a candidate.
        without_masking: the `recipe` of its first stage.
        fold, seed: its fold, counted from 1, and its seed; None if the folder has no result.
        protocol: "strict", "paper", "refit", "nested", or "unknown" if the folder has no result.
        validation_score: of its selected epoch, if it is known, such as the AUC.
        classes, num_features: what it predicts, and the width of the features that it takes.
        features: the details of these features that were recorded, such as the encoder.
        data_digest: of the data set that it was trained on.
        threshold, threshold_from: the decision threshold and what chose it; None and "" if nothing did.
        seen: keys of the bags that trained or selected it.
        task: what it predicts.
        fitted: what the task has fitted on the bags that selected it, besides the threshold.
        config: its configuration, in JSON types.
        bag_of: what one bag of its training was, "slide" or "case".
        evaluated: how its runs evaluated bags, if training saw samples of them; otherwise empty.
    """

    folder: Path
    digest: str
    name: str
    feature_set: str | None
    recipe: str
    without_masking: str
    fold: int | None
    seed: int
    protocol: str
    validation_score: float | None
    classes: tuple[str, ...]
    num_features: int
    features: dict[str, Any]
    data_digest: str
    threshold: float | None
    threshold_from: str
    seen: frozenset[str]
    task: Task
    fitted: Mapping[str, Any]
    config: dict[str, Any]
    bag_of: BagOf = "slide"
    evaluated: str = ""

    def describe(self) -> dict[str, Any]:
        """What `prediction.json` says of it."""
        names = ("name", "digest", "fold", "seed", "protocol", "data_digest", "threshold", "threshold_from")
        said = {name: getattr(self, name) for name in (*names, "config")}
        return {"folder": str(self.folder), **said}


def find_members(folders: Sequence[Path], candidate: str | None = None) -> list[Member]:
    """The networks of an ensemble, all of one configuration per folder.

    A cross-validation also holds the network without masking, and with several protocols each network once
    per protocol. Of these the masked one under `strict` is taken, or under `refit` without that one. What a
    nested sweep has chosen comes before the base configuration beside it.

    Args:
        folders: a finished fold, a cross-validation, or a sweep, for its final runs; or several of them.
        candidate: the name of a configuration, or the start of its digest, where a folder holds several.

    Raises:
        CheckpointError: a folder holds no trained network, or one of its folds is unfinished or damaged.
        ConfigError: a folder holds several configurations, or the networks do not belong together.
    """
    if not folders:
        raise ConfigError("models: expected at least one folder of a trained model, got none")
    found: dict[Path, Member] = {}
    for folder in folders:
        chosen = _chosen([_read(fold) for fold in _folds(folder)], folder, candidate)
        found |= {member.folder: member for member in chosen}
    members = list(found.values())
    _refuse_strangers(members)
    return members


def _folds(folder: Path) -> list[Path]:
    """The folders of the trained networks in a folder.

    Raises:
        CheckpointError: there are none, or some are not finished.
    """
    folder = folder.expanduser().resolve()
    if (folder / BEST_STUDENT).is_dir():
        return [folder]
    parents = [folder / name for name in HOLDERS if (folder / name).is_dir()] or [folder]
    folds = sorted(path for parent in parents for path in parent.glob("fold-*-seed-*") if path.is_dir())
    unfinished = [path.name for path in folds if not (path / BEST_STUDENT).is_dir()]
    if unfinished:
        raise CheckpointError(
            f"{folder}: {len(unfinished)} of {len(folds)} folds are not finished, the first is "
            f"{unfinished[0]}; run the command that trains them again, or give the folders of finished folds"
        )
    if not folds:
        raise CheckpointError(
            f"{folder} holds no trained model: expected a finished fold (with {BEST_STUDENT}/), "
            f"a cross-validation (with {HOLDERS[0]}/) or a sweep (with {HOLDERS[1]}/)"
        )
    return folds


def _read(folder: Path) -> Member:
    """A network as its folder describes it; its weights are checked but not kept.

    Raises:
        CheckpointError: it or its result is damaged, or from an earlier release.
    """
    path = folder / BEST_STUDENT
    _, state = checkpoint.load(path)
    if "config" not in state:
        raise CheckpointError(
            f"{path}: an earlier release wrote it, without the configuration needed to build the network"
        )
    config = TrainConfig.model_validate(state["config"])
    result: dict[str, Any] = {}
    if (folder / RESULT_FILE).is_file():
        result = files.json_object(folder / RESULT_FILE, CheckpointError)
    validation, task = result.get("validation") or {}, restored(state.get("task"), state["classes"])
    protocol = result.get("protocol", "unknown")
    threshold = state.get("threshold")
    if threshold is None:  # written before students recorded it
        threshold = validation.get("threshold")
    chosen_on = f"Youden's J on the {'test' if protocol == 'paper' else 'validation'} bags"
    return Member(
        folder=folder,
        digest=hashlib.sha256((path / "state.json").read_bytes()).hexdigest(),
        name=config.title,
        feature_set=config.features,
        recipe=_recipe(config),
        without_masking=_recipe(config.first_stage()),
        fold=result.get("fold"),
        seed=config.seed,
        protocol=protocol,
        validation_score=validation.get(task.selection),
        classes=tuple(state["classes"]),
        num_features=state["num_features"],
        features={name: value for name, value in state.get("features", {}).items() if value is not None},
        data_digest=state["data_digest"],
        threshold=threshold,
        threshold_from="" if threshold is None else state.get("threshold_from") or chosen_on,
        seen=_seen(folder),
        task=task,
        fitted=(state.get("task") or {}).get("fitted") or {},
        config=config.recipe(),
        bag_of=(state.get("data") or {}).get("bag_of", "slide"),
        evaluated=evaluation_text(config),
    )


def _recipe(config: TrainConfig) -> str:
    """Digest of a configuration without what differs between the folds of one candidate."""
    recipe = config.model_copy(update={"seed": 0}).recipe()
    recipe["teacher"].pop("weights", None)
    return hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=8).hexdigest()


def _seen(folder: Path) -> frozenset[str]:
    file = folder / "split.json"
    if not file.is_file():
        return frozenset()
    split = Split.load(file)
    return frozenset((*split.train, *split.validation))


def _chosen(members: list[Member], folder: Path, candidate: str | None) -> list[Member]:
    """The members of one configuration among those in a folder.

    Raises:
        ConfigError: the folder holds several configurations, or none that is called `candidate`.
    """
    kinds: dict[tuple[str, str], list[Member]] = {}
    for member in members:
        kinds.setdefault((member.recipe, member.protocol), []).append(member)
    left = dict(kinds)
    if candidate is not None:
        left = {
            key: each
            for key, each in left.items()
            if candidate == each[0].name or (len(candidate) >= 4 and key[0].startswith(candidate))
        }
    found = {protocol for _, protocol in left}
    if preferred := next((each for each in PREFERRED if each in found), None):
        left = {key: each for key, each in left.items() if key[1] not in found - {preferred, "unknown"}}
    if candidate is None:
        stages = {
            each[0].without_masking for each in left.values() if each[0].recipe != each[0].without_masking
        }
        left = {key: each for key, each in left.items() if key[0] not in stages} or left
    if len(left) == 1:
        return next(iter(left.values()))
    listing = "; ".join(
        f"{each[0].name}, {recipe}: {len(each)} folds under {protocol}{_judged(each)}"
        for (recipe, protocol), each in kinds.items()
    )
    problem = "expected one configuration" if left else f"no configuration is called {candidate!r}"
    raise ConfigError(f"{folder}: {problem}; give --candidate with the name or the digest of one: {listing}")


def _judged(members: Sequence[Member]) -> str:
    scores = [member.validation_score for member in members if member.validation_score is not None]
    mean = sum(scores) / len(scores) if scores else 0.0
    return f", mean validation {members[0].task.title} {mean:.3f}" if scores else ""


def _refuse_strangers(members: Sequence[Member]) -> None:
    """Refuse networks that cannot vote together.

    Raises:
        ConfigError: they differ in classes, width or encoder; the message names two of them.
    """
    first = members[0]
    for other in members[1:]:
        for what, one, two in (
            ("task", first.task.name, other.task.name),
            ("classes", *(each.classes if each.task.has_classes else None for each in (first, other))),
            ("predictions", first.task.columns, other.task.columns),
            ("features per instance", first.num_features, other.num_features),
            ("bags (--bag-of)", first.bag_of, other.bag_of),
            ("encoder", *_both_known(first, other)),
        ):
            if one != two:
                raise ConfigError(
                    f"expected models of the same {what}, got {one} in {first.folder} and {two} in "
                    f"{other.folder}; predict with each on its own"
                )


def _both_known(first: Member, other: Member) -> tuple[str | None, str | None]:
    one, two = first.features.get("encoder"), other.features.get("encoder")
    return (one, two) if one and two else (None, None)
