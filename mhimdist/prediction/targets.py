"""Which columns of a label table hold the targets that a model predicts."""

from pathlib import Path
from typing import Any

from mhimdist.data.targets import TaskInfo
from mhimdist.errors import ConfigError, LabelError
from mhimdist.prediction.members import Member
from mhimdist.prediction.options import Prediction
from mhimdist.tables.columns import plain
from mhimdist.tables.reading import read_table


def target_columns(options: Prediction, member: Member, door: Any) -> Any:
    """The columns to read, as `data_prep` takes them; None if the model's labels are classes.

    Columns that no option names are those of the model's training table if the table has them all, and are
    found by their usual names otherwise.

    Args:
        options: the table, and names of columns.
        member: the model.
        door: `sources.readers()`.

    Raises:
        ConfigError: an option names a column that the task does not have, or there is no table.
    """
    info = member.task.info
    targets = tuple(filter(None, (options.target_column or "").split(",")))
    times = tuple(filter(None, (options.time_column or "").split(",")))
    fitting = ("--label-column",) if info.of_classes else door.TargetColumns(info.name).options
    given = {
        "--target-column": targets,
        "--time-column": times,
        "--event-column": options.event_column,
        "--label-column": options.label_column,
    }
    for option, is_given in given.items():
        if is_given and option not in fitting:
            raise ConfigError(f"{option} is not for the model in {member.folder}, which predicts {info.name}")
        if is_given and options.labels is None:
            raise ConfigError(f"{option} names a column of a table of labels: give --labels, too")
    if info.of_classes:
        return None
    if options.labels is not None and not (targets or times or options.event_column):
        table = read_table(options.labels.expanduser())
        if set(map(plain, info.columns)) <= set(map(plain, table.columns)):
            if "--time-column" in fitting:
                time, event = info.columns
                return door.TargetColumns(info.name, time=(time,), event=event)
            return door.TargetColumns(info.name, targets=info.columns)
    return door.TargetColumns(info.name, targets, times, options.event_column)


def refuse_other_targets(table: Path, found: TaskInfo, member: Member) -> None:
    """Refuse targets that are not those of a model.

    Raises:
        LabelError: there are more or fewer, or they are in another unit.
    """
    info = member.task.info
    if len(found.columns) != len(info.columns):
        raise LabelError(
            f"{table}: expected {len(info.columns)} targets, {', '.join(info.columns)}, as the model in "
            f"{member.folder} predicts, got {', '.join(found.columns)}"
        )
    if found.unit and info.unit and found.unit != info.unit:
        raise LabelError(
            f"{table}: expected {info.columns[0]} in {info.unit}, as the model in {member.folder} predicts "
            f"it, got {found.columns[0]} in {found.unit}; make a column in {info.unit}"
        )
