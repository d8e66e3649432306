"""The record of what is predicted: a line per slide, appended as soon as it is known.

A killed command loses only the slides that it was computing. The record stays, so that other labels, another
threshold or another rule for cases need no new computation.

Dimensions: M networks, C classes.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from mhimdist import files
from mhimdist.errors import CheckpointError
from mhimdist.prediction.ensemble import Item, Predicted

RECORD_FILE = "members.jsonl"
SYNC_EVERY_S = 2.0


class Records:
    """The record in a prediction's folder.

    Attributes:
        path: the file.
        probabilities: float64 M x C of every item that is predicted, by its `place`.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Read what an earlier start left.

        Args:
            path: the file; made by `appending` if it is missing.
            identity: all that the probabilities depend on, in JSON types.

        Raises:
            CheckpointError: the file holds the predictions of other models or data.
        """
        self.path, self._identity = path, dict(identity)
        self.probabilities: dict[tuple[tuple[int, ...], str], np.ndarray] = {}
        self._length = 0
        if path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        self._length = content.rfind(b"\n") + 1  # a killed process may have written a part of a line
        lines = content[: self._length].splitlines()
        if not lines:
            return
        try:
            before = files.parse_json(lines[0])
            for line in lines[1:]:
                row = files.parse_json(line)
                place = tuple(row["rows"]), row.get("how", "union")
                self.probabilities[place] = np.array(row["probabilities"], np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} is damaged ({error}); give --fresh to predict all slides again"
            ) from None
        differing = [name for name, value in self._identity.items() if before.get(name) != value]
        if differing:
            raise CheckpointError(
                f"{self.path.parent} holds the predictions of other {' and '.join(differing)}; give another "
                "--out, or --fresh to begin anew"
            )

    @contextmanager
    def appending(self) -> Iterator["Appender"]:
        """Append to the file; all lines are on disk when the context ends.

        Raises:
            DiskFullError: the lines do not fit on the disk.
        """
        with files.full_disk(self.path), self.path.open("ab") as file:
            file.truncate(self._length)
            if not self._length:
                file.write(json.dumps(self._identity).encode() + b"\n")
            appender = Appender(self, file)
            try:
                yield appender
            finally:
                appender.sync()
                self._length = file.tell()


class Appender:
    """Appends the outcomes of items to the record."""

    def __init__(self, records: Records, file: IO[bytes]) -> None:
        self._records, self._file, self._synced = records, file, time.monotonic()

    def add(self, predicted: Predicted) -> None:
        """Add an item that was predicted; one that failed is not recorded, so that it is tried again."""
        if predicted.probabilities_MC is None:
            return
        item: Item = predicted.item
        self._records.probabilities[item.place] = predicted.probabilities_MC
        row = {"name": item.name, "rows": item.rows, "probabilities": predicted.probabilities_MC.tolist()}
        if item.how != "union":
            row["how"] = item.how
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()  # the system keeps it if this process is killed
        if time.monotonic() > self._synced + SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Force all lines to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()
