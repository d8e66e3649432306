"""The selected student of a run on disk: its weights, and everything needed to build it again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor

from mhimdist.config.train import TrainConfig, explain
from mhimdist.data.bags import BagSource
from mhimdist.data.description import describe
from mhimdist.data.stored import StoredBags
from mhimdist.errors import CheckpointError
from mhimdist.models import BagModel, build
from mhimdist.models.foreign_weights import differences
from mhimdist.tasks import Task, restored
from mhimdist.training import checkpoint
from mhimdist.training.environment import versions

BEST_STUDENT = "best_student"


FEATURE_DETAILS = ("encoder", "patch_size", "level", "magnification", "coords_unit")
"""What is recorded of the features that a student was trained on, as far as the data set knows it."""


def save_student(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: TrainConfig,
    bags: BagSource,
    trained_on: str,
    *,
    task: Task,
    teacher: Mapping[str, Tensor] | None = None,
    fitted: Mapping[str, Any] | None = None,
    fitted_from: str = "",
) -> dict[str, Any]:
    """Write the student of a run's selected epoch; it replaces an older one.

    Args:
        folder: the run's folder.
        weights: the network's `state_dict`.
        config: the run's settings.
        bags: the data set that it was trained on.
        trained_on: key of one of the train set's bags: how its features were made is recorded as that of all.
            Bags of the test set are not read before they are tested.
        teacher: the `state_dict` of the teacher of that epoch, if it has weights of its own.
        fitted: what the task has fitted on bags that select: with two classes, the threshold; None if nothing
            did.
        fitted_from: how, and on which bags, in words.
        task: the network's task, with what it has learnt.

    Returns:
        What was saved with the weights.
    """
    built_from = {
        "config": config.recipe(),
        "num_features": bags.num_features,
        "classes": list(bags.classes),
        "data_digest": bags.digest,
        "features": _details(bags, trained_on),
        "data": describe(bags),
        "versions": versions(config.model.name),
        "threshold": (fitted or {}).get("threshold"),
        "threshold_from": fitted_from,
    }
    if record := task.record():
        built_from["task"] = record | {"fitted": dict(fitted or {})}
    checkpoint.discard(folder / BEST_STUDENT)
    networks = {"student": weights, **({"teacher": teacher} if teacher else {})}
    checkpoint.save(folder / BEST_STUDENT, networks, built_from)
    return built_from


def _details(bags: BagSource, key: str) -> dict[str, Any]:
    """The `FEATURE_DETAILS` of a bag, and its scale: all features of a data set are made alike."""
    said = bags.details(int(bags.rows_of([key])[0])) if isinstance(bags, StoredBags) else {}
    found = {name: said.get(name) for name in FEATURE_DETAILS}
    return found | ({"standardized": said["standardized"]} if said.get("standardized") else {})


def load_student(folder: str | Path) -> BagModel:
    """The student of a run's selected epoch, on the CPU and in evaluation mode.

    Args:
        folder: folder of a finished fold, `.../fold-1-seed-2021[-<digest>]`, in a cross-validation, a trial
            or a sweep's final runs.

    Raises:
        CheckpointError: the folder holds no student, or the student is damaged, from another release, or does
            not fit the configuration next to it; the message lists the weights that do not.

    Example:
        >>> student = load_student("runs/train_c16/folds/fold-1-seed-2021-0f3c")  # doctest: +SKIP
        >>> student.predictions(student(bags.load([0])))  # doctest: +SKIP
    """
    path = Path(folder) / BEST_STUDENT
    if not path.exists():
        raise CheckpointError(f"{folder} holds no {BEST_STUDENT}/: give the folder of a finished fold")
    network = _load(path, "student")
    assert network is not None, "every checkpoint of a student holds it"
    return network


def load_teacher(folder: str | Path) -> BagModel | None:
    """The teacher of a run's selected epoch, on the CPU and in evaluation mode.

    Args:
        folder: see `load_student`.

    Returns:
        The network; the student itself if the settings make it the teacher; None if the run had no teacher or
        an earlier release did not keep it.

    Raises:
        CheckpointError: see `load_student`.
    """
    return _load(Path(folder) / BEST_STUDENT, "teacher")


def _load(path: Path, role: Literal["student", "teacher"]) -> BagModel | None:
    """Build a network and load its weights; None if there are none."""
    tensors, state = checkpoint.load(path)
    if "config" not in state:
        raise CheckpointError(
            f"{path}: an earlier release wrote it, without the configuration needed to build the network"
        )
    try:
        config = TrainConfig.model_validate(state["config"])
        num_features, task = state["num_features"], restored(state.get("task"), state["classes"])
        weights = tensors["student"] if role == "student" else tensors.get("teacher")
        if role == "teacher" and config.teacher.kind == "student_copy":
            weights = tensors["student"]
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: another release wrote it; its configuration is unknown here: "
            f"{'; '.join(explain(item) for item in error.errors())}"
        ) from None
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected a student of this release, it lacks {error}") from None
    if weights is None:
        return None
    network = build(config.model, num_features=num_features, task=task, seed=config.seed)
    if faults := differences(weights, network.state_dict()):
        raise CheckpointError(
            f"{path}: the weights do not fit {config.model.name} as configured there: {'; '.join(faults)}"
        )
    network.load_state_dict(weights)
    return network.eval()
