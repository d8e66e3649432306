"""What every instance of a slide says, as a Parquet file per slide.

Dimensions: N instances of a bag, M networks, C classes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mhimdist import files
from mhimdist.data.format import escape_key
from mhimdist.prediction.ensemble import InstanceScores, Item
from mhimdist.prediction.sources import Bags
from mhimdist.prediction.tables import write_parquet
from mhimdist.prediction.verdicts import Threshold
from mhimdist.tasks import Task

SCORES_FOLDER = "scores"
FORMAT = 1
METADATA_KEY = b"mhimdist"
MADE_OF = "made_of.json"
"""In the folder of scores: what its files depend on, so that older ones are not taken for new ones."""
_DETAILS = ("patch_size", "level", "magnification", "coords_unit")
_LONGEST_NAME = 255  # bytes, of most file systems


def scores_file(folder: Path, slide: str) -> Path:
    """The file of a slide's scores.

    Its name is the slide's key. A key that is too long for a file name is cut and ends in a hash.
    """
    key = escape_key(slide)
    if len(key) + len(".parquet") > _LONGEST_NAME:
        key = f"{key[:200]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return folder / f"{key}.parquet"


@dataclass(frozen=True)
class ScoreWriter:
    """Writes the scores of the instances of slides; several processes may write to one folder.

    Attributes:
        folder: receives the files.
        bags: the data set.
        labels: class of every slide that is known, by row.
        cases: case of every slide, by row.
        task: what the networks predict.
        threshold: the decision threshold.
        encoder: of the features.
        patch_size: of the features, if the user states it.
        models: folders of the networks.
        warnings: of the prediction.
    """

    folder: Path
    bags: Bags
    labels: Mapping[int, str | None]
    cases: Mapping[int, str]
    task: Task
    threshold: Threshold
    encoder: str | None
    patch_size: int | None
    models: Sequence[str]
    warnings: Sequence[str]

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder; delete the files of other networks, data, labels or another threshold.

        Args:
            identity: what the probabilities depend on.
        """
        said = [self.labels, self.cases, self.threshold.value, self.encoder, self.patch_size]
        text = json.dumps([FORMAT, dict(identity), said], default=str)
        made_of = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest()})
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / MADE_OF
        if not file.exists() or file.read_text(encoding="utf-8") != made_of:
            for old in self.folder.glob("*.parquet"):
                old.unlink()
            files.write_text(file, made_of)
        for part in self.folder.glob(".*.part"):  # of a killed process
            part.unlink()

    def has(self, item: Item) -> bool:
        """Whether the scores of all slides of an item are written."""
        return all(scores_file(self.folder, self.bags.slides[row]).exists() for row in item.rows)

    def __call__(self, item: Item, probabilities_MC: np.ndarray, scores: InstanceScores) -> None:
        """Write the scores of each slide of an item; of a case, the attention adds up to 1 over the case.

        Args:
            item: the slide, or the case.
            probabilities_MC: its probabilities by every network.
            scores: what its instances say, slide after slide.

        Raises:
            DiskFullError: the file does not fit on the disk.
            DataError: coordinates or instance labels are damaged.
        """
        start = 0
        for row in item.rows:
            end = start + int(self.bags.sizes_N[row])
            part = InstanceScores(
                *(
                    None if values is None else values[start:end]
                    for values in (scores.attention_N, scores.instance_NC, scores.teacher_attention_N)
                )
            )
            self._write(row, item.what, probabilities_MC, part)
            start = end

    def _write(self, row: int, bag_of: str, probabilities_MC: np.ndarray, scores: InstanceScores) -> None:
        size = int(self.bags.sizes_N[row])
        coords_N2, labels_N = self.bags.coords(row), self.bags.instance_labels(row)
        columns = {
            "x": _column(None if coords_N2 is None else coords_N2[:, 0], size, pa.int32()),
            "y": _column(None if coords_N2 is None else coords_N2[:, 1], size, pa.int32()),
            "attention": _column(scores.attention_N, size, pa.float32()),
        }
        for c, name in enumerate(self._names):
            values_N = None if scores.instance_NC is None else scores.instance_NC[:, c]
            columns[f"instance_{name}"] = _column(values_N, size, pa.float32())
        columns["teacher_attention"] = _column(scores.teacher_attention_N, size, pa.float32())
        columns["instance_label"] = _column(labels_N, size, pa.uint8())
        document = json.dumps(self._metadata(row, bag_of, probabilities_MC.mean(0)))
        table = pa.table(columns).replace_schema_metadata({METADATA_KEY: document.encode()})
        write_parquet(table, scores_file(self.folder, self.bags.slides[row]))

    @property
    def _names(self) -> tuple[str, ...]:
        """What is predicted of a slide and of each instance: classes, or the columns of the task."""
        return tuple(name.removeprefix("probability_") for name in self.task.columns)

    def _metadata(self, row: int, bag_of: str, probabilities_C: np.ndarray) -> dict[str, Any]:
        details = self.bags.details(row)
        decided = self.task.decide(probabilities_C[None], {"threshold": self.threshold.value})
        return {
            "format": FORMAT,
            "slide": self.bags.slides[row],
            "case": self.cases[row],
            "label": self.labels[row],
            "predicted": decided[0] if decided else None,
            "probability": dict(zip(self._names, probabilities_C.tolist(), strict=True)),
            "classes": list(self._names),
            **{name: details.get(name) for name in _DETAILS},
            **({"patch_size": self.patch_size} if self.patch_size else {}),
            "encoder": details.get("encoder") or self.encoder,
            "models": list(self.models),
            **({"bag_of": bag_of} if bag_of != "slide" else {}),
            "warnings": list(self.warnings),
        }


def _column(values_N: np.ndarray | None, size: int, kind: pa.DataType) -> pa.Array:
    if values_N is None:
        return pa.nulls(size, kind)
    return pa.array(np.ascontiguousarray(values_N), kind)
