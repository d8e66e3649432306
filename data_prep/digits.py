"""The embedded data sets: bags of real handwritten digits, and synthetic bags of CAMELYON16's shape.

`python -m data_prep.digits digits-c16` builds one; `ensure` hands it to a job. DATA_CARD.md, next to this
file, says what is real in them, what is sampled, and what simple models reach on them. How they are drawn is
in `embedded/`.
"""

import csv
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.command_line import read, stoppable
from data_prep.embedded.classes import CLASS_SETS
from data_prep.embedded.slides import DataSet
from data_prep.embedded.tasks import TASK_SETS, known_concordance
from data_prep.options import Embedded
from data_prep.shard import shard
from data_prep.writing.writer import appearing_whole, working_beside
from mhimdist.data.manifest import Manifest
from mhimdist.data.remote import Location, is_remote
from mhimdist.errors import DataError
from mhimdist.files import Lock, home
from mhimdist.foreign_text import say
from mhimdist.process import run

DATA_SETS = {**CLASS_SETS, **TASK_SETS}


def write_features(
    name: str, out: Path, *, seed: int = 0, scale: float | None = None, bags: int | None = None
) -> str:
    """Write an embedded data set as a folder of features, the input of `data_prep.shard`.

    The folder appears whole or not at all. A slide is `out/features/SLIDE.npy` (float16, N x D) and
    `SLIDE.instance_labels.npy` (uint8, N); `out/labels.csv` has the columns slide and case, and label or the
    columns of the targets. Equal arguments write equal bytes.

    Args:
        name: a key of `DATA_SETS`.
        out: folder to make; must not exist.
        seed: seed of every draw.
        scale: bag size relative to CAMELYON16's, above 0; each data set has its own default.
        bags: number of slides, if fewer than all.

    Returns:
        What the data set is, for its manifest; of survival with the concordance that the true hazards reach.

    Raises:
        DataError: the data set is unknown, a number is not positive, or `out` exists.
    """
    if name not in DATA_SETS:
        raise DataError(f"no embedded data set is named {name!r}; expected one of {', '.join(DATA_SETS)}")
    data_set = DATA_SETS[name]
    scale = data_set.scale if scale is None else scale
    if scale <= 0:
        raise DataError(f"the scale of {name} must be above 0, got {scale}")
    if bags is not None and bags < 1:
        raise DataError(f"the number of bags of {name} must be at least 1, got {bags}")
    _refuse_to_overwrite(out)

    with appearing_whole(out) as folder, (folder / "labels.csv").open("w", newline="") as file:
        features = folder / "features"
        features.mkdir()
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["slide", *data_set.columns, "case"])
        truths = []
        for slide in islice(data_set.draw(np.random.Generator(np.random.PCG64(seed)), scale), bags):
            np.save(features / f"{slide.name}.npy", slide.features_ND)
            np.save(features / f"{slide.name}.instance_labels.npy", slide.instance_labels_N)
            table.writerow([slide.name, *slide.labels, slide.case])
            truths.append((slide.labels, slide.log_hazard))
    if data_set.task.name != "survival":
        return data_set.description
    best = known_concordance(truths)
    return f"{data_set.description}; the true hazards reach a concordance of {best:.4f} (Harrell)"


def build(
    name: str, out: Path, *, seed: int = 0, scale: float | None = None, bags: int | None = None
) -> Path:
    """Build an embedded data set as a folder of shards, whole or not at all, and return `out`.

    Args:
        name, seed, scale, bags: as in `write_features`.
        out: folder to make; must not exist. Its parent folder also holds the features until they are sharded.

    Raises:
        DataError: as in `write_features`.
    """
    _refuse_to_overwrite(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with working_beside(out) as folder:
        source = folder / "source"
        description = write_features(name, source, seed=seed, scale=scale, bags=bags)
        data_set = DATA_SETS[name]
        shard(
            source / "features",
            source / "labels.csv",
            out,
            name=name,
            description=description,
            synthetic=data_set.synthetic,
            **_label_options(data_set),
        )
    return out


def _label_options(data_set: DataSet) -> dict[str, Any]:
    """The options of `data_prep.shard` that read the labels of a data set."""
    task = data_set.task
    options: dict[str, Any] = {"task": task.name}
    if task.of_classes:
        return options | {"classes": data_set.classes}
    if task.name == "survival":
        return options | {"time_column": task.columns[:1], "event_column": task.columns[1], "unit": task.unit}
    return options | {"target_column": task.columns}


def ensure(name_or_path: str, home: Path) -> Location:
    """Return the folder of a data set's shards; an embedded data set is built on the first request.

    Several processes may ask at once, also on several nodes with shared storage: one builds, the others wait.

    Args:
        name_or_path: a key of `DATA_SETS`, kept in `home/data/<name>`, or the path or URL of a folder of
            shards; a URL is returned as it is.
        home: see `mhimdist.files.home`.

    Raises:
        DataError: it is neither an embedded data set nor an existing folder.
    """
    if is_remote(name_or_path):
        return name_or_path
    if name_or_path not in DATA_SETS:
        path = Path(name_or_path).expanduser()
        if not path.is_dir():
            raise DataError(
                f"no data set {name_or_path!r}; expected a URL, an existing folder, or one of "
                f"{', '.join(DATA_SETS)}"
            )
        return path
    out = home / "data" / name_or_path
    if not out.is_dir():
        with Lock(out.parent / ".lock"):
            if not out.is_dir():  # another process may have built it while this one waited
                build(name_or_path, out)
    return out


def _refuse_to_overwrite(out: Path) -> None:
    if out.exists():
        raise DataError(f"{out} already exists; give another --out, or remove it")


def main() -> None:
    """Run the command: build one embedded data set."""
    build_embedded(read(Embedded, None, "python -m data_prep.digits"))


def build_embedded(asked: Embedded) -> None:
    """Build one embedded data set, and say where it is.

    Raises:
        PreemptedError: SIGTERM, which `ray job stop` and batch systems send, ended it; nothing half-written
            stays.
        DataError: see `build`.
    """
    with stoppable(asked.out or asked.name):
        out: Location
        if asked.out is None:
            out = ensure(asked.name, home())
        elif asked.features_only:
            out = asked.out
            write_features(asked.name, out, **asked.drawn)
        else:
            out = build(asked.name, asked.out, **asked.drawn)
    say(f"{asked.name}: {out}")
    if DATA_SETS[asked.name].task.name == "survival" and not asked.features_only:
        say(Manifest.read(Path(out)).info.description)


if __name__ == "__main__":
    run(main)
