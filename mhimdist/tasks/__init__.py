"""What a bag's label means: `task_of` makes the task that a data set and the settings name."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from mhimdist.config import tasks as task_settings
from mhimdist.config.imported import imported
from mhimdist.config.models import Settings
from mhimdist.data.bags import BagSource
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import CheckpointError, ConfigError
from mhimdist.tasks.classification import Classification
from mhimdist.tasks.interface import Judged, Task, Truth
from mhimdist.tasks.multilabel import Multilabel
from mhimdist.tasks.ordinal import Ordinal
from mhimdist.tasks.regression import Regression
from mhimdist.tasks.survival import Survival

__all__ = ["Judged", "Task", "Truth", "classification", "restored", "task_of"]

_TASKS: dict[str, tuple[type[Task], type[Settings]]] = {
    "classification": (Classification, task_settings.ClassificationTask),
    "ordinal": (Ordinal, task_settings.OrdinalTask),
    "multilabel": (Multilabel, task_settings.MultilabelTask),
    "regression": (Regression, task_settings.RegressionTask),
    "survival": (Survival, task_settings.SurvivalTask),
}

_SETTINGS: TypeAdapter[Any] = TypeAdapter(task_settings.TaskSettings)


def task_of(bags: BagSource, settings: Settings) -> Task:
    """The task of a data set, before it has learnt from training bags.

    Args:
        bags: the data set.
        settings: `TrainConfig.task`; "auto" is the task that the data set states.

    Raises:
        ConfigError: the data set has no such labels, or a class of yours is not there or is no task.
    """
    # Sources in memory, such as those of tests, may state no task.
    return _make(getattr(bags, "task", None) or TaskInfo(), bags.classes, settings)


def classification(num_classes: int) -> Task:
    """Classification of so many classes, named by their numbers."""
    return _make(TaskInfo(), [str(label) for label in range(num_classes)], task_settings.AutoTask())


def restored(record: Mapping[str, Any] | None, classes: Sequence[str]) -> Task:
    """The task of a network that was saved.

    Args:
        record: what `Task.record` returned; empty or None for classification.
        classes: the class names, for classification.

    Raises:
        CheckpointError: the record is damaged, or of another release.
        ConfigError: a class of yours is not there, or is no task.
    """
    if not record:
        return _make(TaskInfo(), classes, task_settings.AutoTask())
    try:
        info = TaskInfo.model_validate_json(json.dumps(record["info"]))
        settings: Settings = _SETTINGS.validate_python(record["settings"])
        names, learnt = list(map(str, record["classes"])), dict(record["learnt"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected the record of a task of this release, got {record}: {error}"
        ) from None
    return _make(info, names, settings, learnt)


def _make(
    info: TaskInfo, classes: Sequence[str], settings: Settings, learnt: Mapping[str, Any] | None = None
) -> Task:
    name = getattr(settings, "name", "auto")
    if isinstance(settings, task_settings.CustomTask):
        return _custom(settings)(info, classes, settings, learnt)
    if name == "auto":
        kind, makes = _TASKS[info.name]
        return kind(info, classes, makes(), learnt)
    of_classes = [each for each, (kind, _) in _TASKS.items() if kind.has_classes]
    # Classes in ascending order may be taken as grades, and grades as classes.
    fitting = of_classes if info.of_classes else [info.name]
    if name not in fitting:
        columns = f" with the columns {', '.join(info.columns)}" if info.columns else ""
        raise ConfigError(
            f"task.name: the data set is labelled for {info.name}{columns}; expected {' or '.join(fitting)}, "
            f"or auto, got {name}"
        )
    return _TASKS[name][0](info, classes, settings, learnt)


def _custom(settings: task_settings.CustomTask) -> type[Task]:
    found = imported(settings.entry, "task.entry", "Class", ConfigError)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigError(f"task.entry: expected a class derived from mhimdist.tasks.Task, got {found!r}")
    return found
