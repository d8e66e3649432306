"""What a run needs of its data and files, checked before its first step.

Cross-validations and sweeps check all of their folds here before anything trains: a class that one fold lacks
would otherwise end them after the others have trained for hours.
"""

from collections.abc import Iterable, Mapping, Sequence

from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.errors import CheckpointError, ConfigError, SplitError
from mhimdist.method.masking import ranking_of
from mhimdist.models import BagModel, build, check_model
from mhimdist.models.official import load_official
from mhimdist.tasks import Task, task_of


def check_runs(runs: Iterable[tuple[str, TrainConfig, Split]], bags: BagSource) -> None:
    """Check that every run can train, select and be tested.

    Args:
        runs: name, configuration and split of each run; a split without validation is that of a refit.
        bags: the data set.

    Raises:
        SplitError: a split does not fit the data, or cannot teach, select or test the task, such as a train
            set without a class or without an event; the message names the run.
        ConfigError: the class weights are not one per class, or the model does not fit the task.
        CheckpointError: the teacher's weights cannot be read, or do not fit the configuration and the data.
    """
    fitting: set[tuple[Split, str]] = set()
    weights: set[tuple[object, ...]] = set()
    for name, config, split in runs:
        kind = repr((config.task, config.model, config.masking.ranking))
        if (split, kind) not in fitting:
            try:
                check_run(config, bags, split, validates=bool(split.validation))
            except SplitError as error:
                raise SplitError(f"{name}: {error}") from None
            fitting.add((split, kind))
        check_class_weights(config, task_of(bags, config.task))
        file = (config.teacher.weights, config.teacher.weights_of, config.model)
        if config.teacher.has_outside_weights and file not in weights:
            outside_network(config, bags)
            weights.add(file)


def check_run(
    config: TrainConfig, bags: BagSource, split: Split, *, num_workers: int = 1, validates: bool = True
) -> None:
    """Check that a configuration can train and select on a split.

    Args:
        config: the run's settings.
        bags: the data set.
        split: the bags that train, select and test.
        num_workers: processes that share the run.
        validates: whether the run validates; otherwise its number of epochs is given.

    Raises:
        SplitError: the split does not fit the data, or cannot teach, select or test the task.
        ConfigError: the class weights are not one per class, model, task and settings do not go together, or
            the ranking of the masks cannot be imported.
    """
    task = task_of(bags, config.task)
    task.check(bags, split, validates=validates)
    check_class_weights(config, task)
    check_model(config.model, task)
    if config.masking.ranking is not None:
        ranking_of(config.masking.ranking)
    if task.compares_with == "step" and (config.bags_per_step < 2 or num_workers > 1):
        raise ConfigError(
            "task.risk_set: step compares the bags of a step on one worker, at least 2 of them; got "
            f"bags_per_step {config.bags_per_step} and {num_workers} worker(s): choose memory, or change them"
        )


def check_class_weights(config: TrainConfig, task: Task) -> None:
    """Check that there is one weight per class, if there are weights.

    Raises:
        ConfigError: there are more or fewer, or the task has no classes.
    """
    weights, classes = config.loss.class_weights, task.classes
    if weights is not None and not task.has_classes:
        raise ConfigError(f"loss.class_weights: expected none, as {task.name} has no classes, got {weights}")
    if weights is not None and len(weights) != len(classes):
        raise ConfigError(
            f"loss.class_weights: expected {len(classes)} weights, one per class ({', '.join(classes)}), "
            f"got {len(weights)}"
        )


def outside_network(config: TrainConfig, bags: BagSource) -> BagModel:
    """Build the pre-trained network of a checkpoint that others trained, from `teacher.weights`.

    Raises:
        CheckpointError: the configuration names no file, or the file holds another model, input width or
            number of classes.
    """
    path = config.teacher.weights
    if path is None:
        raise CheckpointError("teacher.weights: expected a checkpoint, got none")
    weights = load_official(path, config.model, config.teacher.weights_of)
    task = task_of(bags, config.task)
    network = build(config.model, num_features=bags.num_features, task=task, seed=config.seed)
    for name, value in network.state_dict().items():
        found = weights.get(name)
        if found is None or found.shape != value.shape:
            size = f"{len(bags.classes)} classes" if task.has_classes else f"{task.name} of targets"
            raise CheckpointError(
                f"{path}: {name}: expected shape {tuple(value.shape)}, for data with {bags.num_features} "
                f"features and {size}, got {'none' if found is None else tuple(found.shape)}"
            )
    network.load_state_dict(weights)
    return network


def notes_on_classes(bags: BagSource, splits: Sequence[Split]) -> list[str]:
    """A line if validation or test of a fold lack a class, of which the metrics there say nothing.

    Args:
        bags: the data set.
        splits: one split per fold, in order.
    """
    if not bags.task.of_classes:
        return []  # strata of targets are not judged
    lacking = {
        f"fold {number}" if len(splits) > 1 else "": split.missing_classes(
            bags.keys, bags.labels_N, bags.classes
        )
        for number, split in enumerate(splits, 1)
    }
    text = describe_missing(lacking, bags.task.name)
    return [text] if text else []


def describe_left_out(bags: BagSource, splits: Iterable[Split]) -> str:
    """How many bags no set of any split names, so that they are left out; empty if there are none.

    Args:
        bags: the data set.
        splits: all splits of the run.
    """
    used = {key for split in splits for members in split.sets.values() for key in members}
    if not (left := [key for key in bags.keys if key not in used]):
        return ""
    named = ", ".join(map(repr, left[:MAX_NAMED])) + (", ..." if len(left) > MAX_NAMED else "")
    return f"the split names {len(bags.keys) - len(left)} of {len(bags.keys)} bags; left out: {named}"


def describe_missing(lacking: Mapping[str, Mapping[str, Sequence[str]]], task: str) -> str:
    """The classes that some sets lack, and what that means for their metrics; empty if no set lacks any.

    Args:
        lacking: by the fold's name, or by "" if there is only one, what `Split.missing_classes` returned.
        task: the task that judges the bags. Metrics of grades are no means over classes.
    """
    places: dict[str, list[str]] = {}
    for fold, sets in lacking.items():
        for name, classes in sets.items():
            places.setdefault(", ".join(classes), []).append(f"{name} of {fold}" if fold else name)
    if not places:
        return ""
    listed = "; ".join(
        f"no case of {classes} in {', '.join(where[:MAX_NAMED])}"
        + (f" and {len(where) - MAX_NAMED} more" if len(where) > MAX_NAMED else "")
        for classes, where in places.items()
    )
    if task != "classification":
        return f"{listed}: the figures there do not say how such a case is judged"
    return f"{listed}: AUC, F1, precision and recall there are means over the classes that are present"


MAX_NAMED = 6
"""Most sets that `describe_missing` names per class."""
