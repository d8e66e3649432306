"""Small data sets of `task_bags` as shards, from a table as people write it."""

from pathlib import Path
from typing import Any

import numpy as np
from task_bags import TaskBags

from data_prep.shard import shard
from mhimdist.data.shards import BagShards

GRADES = ("low", "mid", "top")
OPTIONS: dict[str, dict[str, Any]] = {
    "ordinal": {"classes": GRADES},
    "multilabel": {"target_column": ("mutated", "invasive")},
    "regression": {"target_column": ("score", "size")},
    "survival": {"time_column": ("time",), "event_column": "event", "unit": "months"},
}


def shards_of(bags: TaskBags, folder: Path) -> BagShards:
    """The bags as shards below a folder, with their cases, and their grades or targets."""
    (folder / "features").mkdir(parents=True)
    lines = [",".join(["slide", "case", *(bags.task.columns or ("label",))])]
    for row, key in enumerate(bags.keys):
        np.save(folder / "features" / f"{key}.npy", bags.features[row].numpy())
        cells = ["" if np.isnan(value) else repr(float(value)) for value in bags.targets_NK[row]]
        lines.append(",".join([key, bags.cases[row], *(cells or [GRADES[bags.labels_N[row]]])]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    task = bags.task.name
    shard(folder / "features", folder / "labels.csv", folder / "shards", task=task, **OPTIONS[task])
    return BagShards(folder / "shards")
