"""The slides to predict: shards, or feature files that are read as they are.

This module is the only door of the package to `data_prep`, whose readers know the files.

Dimensions: N instances of a bag or bags of the data set, T instances of a batch, B bags, D features.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mhimdist.data import memory
from mhimdist.data.bags import PackedBags, bag_id
from mhimdist.data.format import escape_key
from mhimdist.data.manifest import MANIFEST_NAME
from mhimdist.data.opening import feature_sets_at, open_bags
from mhimdist.data.remote import Location, absolute
from mhimdist.data.stored import StoredBags
from mhimdist.data.targets import TaskInfo
from mhimdist.errors import ConfigError, DataError

if TYPE_CHECKING:
    from data_prep.readers.sources import SlideFeatures, Source

BLOCK_BYTES = 16 << 20
"""Features that are read from a file at a time."""
UNKNOWN = -1
"""Class of a bag whose label is unknown."""


def readers() -> Any:
    """What this package uses of `data_prep`; imported on demand, because only predictions need it."""
    from data_prep.readers.folders import THREADS, find_features
    from data_prep.readers.members import encoder_of
    from data_prep.readers.sources import read_features, some
    from data_prep.readers.stated import Stated
    from data_prep.tables.cases import cases_of_barcodes
    from data_prep.tables.labels import Columns, SlideLabel, read_labels, without_suffixes
    from data_prep.tables.target_columns import TargetColumns

    return SimpleNamespace(
        THREADS=THREADS,
        find_features=find_features,
        encoder_of=encoder_of,
        read_features=read_features,
        some=some,
        Stated=Stated,
        cases_of_barcodes=cases_of_barcodes,
        Columns=Columns,
        SlideLabel=SlideLabel,
        read_labels=read_labels,
        without_suffixes=without_suffixes,
        TargetColumns=TargetColumns,
    )


@dataclass(frozen=True)
class Header:
    """What is known of a slide's features before their values are read."""

    num_instances: int
    num_features: int
    dtype: torch.dtype
    details: dict[str, Any]


class FeatureFiles:
    """Bags in files of features, one slide each or in bundles; a `BagSource`.

    A bag is read when it is asked for, block by block, and checked: a value that is not finite is refused, as
    it is when shards are made. You may read from it in more than one thread, and pickle it.

    Attributes:
        folder: where the files are, as messages name it.
        keys, slides, cases: key, slide and case of every bag, in the order of the slides' names.
        classes: always empty: files do not say which classes a model has.
        labels_N: always `UNKNOWN`.
        task, targets_NK: always those of classification, without targets.
        labels: the label of every bag as its bundle states it; None if it states none.
        sizes_N, ids_N: int64 number of instances and `bag_id` of every bag.
        num_features: width of the features of the first bag.
        digest: hash of names, lengths and times of the files.
        unreadable: why a slide's file cannot be used, by slide; such slides are not among the bags.
    """

    def __init__(self, folder: Path, *, stated: Any = None) -> None:
        """Find the files and read their headers.

        Args:
            folder: the folder of features, or one bundle of bags.
            stated: what the user states about all features, a `data_prep` `Stated`; None for nothing.

        Raises:
            DataError: there are no features that can be read.
        """
        door = readers()
        self.folder = folder
        stated = stated or door.Stated()
        found: Mapping[str, Source] = door.find_features(folder, stated)
        self.unreadable: dict[str, str] = {}
        self._sources: list[Source] = []
        self.headers: list[Header] = []
        slides = []
        with ThreadPoolExecutor(door.THREADS) as threads:
            names = sorted(found)
            for slide, header in zip(names, threads.map(_header, map(found.__getitem__, names)), strict=True):
                if isinstance(header, str):
                    self.unreadable[slide] = header
                    continue
                slides.append(slide)
                self._sources.append(found[slide])
                self.headers.append(header)
        if not slides:
            first = next(iter(self.unreadable.values()))
            raise DataError(f"none of the {len(found):,} slides in {folder} can be read; the first: {first}")
        self.slides = tuple(slides)
        self.keys = tuple(map(escape_key, slides))
        self.cases = tuple(
            str(source.details.get("case") or slide)
            for slide, source in zip(slides, self._sources, strict=True)
        )
        self.classes: tuple[str, ...] = ()
        self.labels = tuple(_label(source) for source in self._sources)
        self.labels_N = np.full(len(slides), UNKNOWN, np.int64)
        self.task, self.targets_NK = TaskInfo(), np.zeros((len(slides), 0))
        self.sizes_N = np.array([header.num_instances for header in self.headers], np.int64)
        self.ids_N = np.array([bag_id(key) for key in self.keys], np.int64)
        self.num_features = self.headers[0].num_features
        self.digest = _digest(self.slides, self._sources, folder, stated)

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Row numbers of bags, int64.

        Raises:
            DataError: a key is not among the bags.
        """
        row_of = {key: row for row, key in enumerate(self.keys)}
        if unknown := [key for key in keys if key not in row_of]:
            raise DataError(f"{self.folder} has no bag {unknown[0]!r}")
        return np.array([row_of[key] for key in keys], np.int64)

    def load(
        self,
        rows: Sequence[int] | np.ndarray,
        dtype: torch.dtype = torch.float32,
        *,
        out: Tensor | None = None,
    ) -> PackedBags:
        """The bags of these rows, packed in this order, with features in `dtype`.

        Args:
            rows: row numbers.
            dtype: floating dtype of the batch's features.
            out: a buffer of `dtype`, at least T x D.

        Raises:
            DataError: a file is damaged, has changed, or holds a value that is not finite in `dtype`; or the
                batch needs more memory than this process can have.
        """
        rows_B = np.asarray(rows, np.int64)
        num_rows = int(self.sizes_N[rows_B].sum())
        if out is None:
            num_bytes = num_rows * self.num_features * dtype.itemsize
            if num_bytes >= memory.ASKED_FROM_BYTES:
                memory.require(num_bytes, memory.describe(self, rows_B, dtype))
            out = torch.empty((num_rows, self.num_features), dtype=dtype)
        features_TD = out[:num_rows]
        parts = features_TD.split(self.sizes_N[rows_B].tolist())
        for part_ND, row in zip(parts, rows_B.tolist(), strict=True):
            self._fill(part_ND, row)
        return PackedBags.of_rows(self, rows_B, features_TD)

    def details(self, row: int) -> dict[str, Any]:
        """How the features of a bag were made, as far as its file says it."""
        return self.headers[row].details

    def coords(self, row: int) -> np.ndarray | None:
        """A bag's patch positions, int32 N x 2; None if it has none.

        Raises:
            DataError: they are damaged.
        """
        return self._open(row).coords_N2

    def instance_labels(self, row: int) -> np.ndarray | None:
        """A bag's instance labels, uint8 N; None if it has none.

        Raises:
            DataError: they are damaged.
        """
        return self._open(row).instance_labels_N

    def _open(self, row: int) -> "SlideFeatures":
        found: SlideFeatures = readers().read_features(self._sources[row])
        expected = int(self.sizes_N[row]), self.num_features
        if (got := (found.num_instances, found.num_features)) != expected:
            raise DataError(
                f"{self._sources[row].path}: expected {expected[0]} x {expected[1]} features, got {got[0]} x "
                f"{got[1]}: the file has changed; run the command again"
            )
        return found

    def _fill(self, out_ND: Tensor, row: int) -> None:
        done = 0
        for block in self._open(row).blocks(BLOCK_BYTES):
            part = out_ND[done : done + len(block)].copy_(block)
            # The extremes are NaN if any value is: one fast pass instead of a mask.
            if not torch.stack(torch.aminmax(part)).isfinite().all():
                bad = int((~part.isfinite()).sum())
                raise DataError(
                    f"{self._sources[row].path}: slide {self.slides[row]!r}: {bad} features of its instances "
                    f"{done} to {done + len(block) - 1} are NaN, infinite or too large for {out_ND.dtype}"
                )
            done += len(block)


Bags = StoredBags | FeatureFiles


def open_source(
    location: Location,
    *,
    stated: Any = None,
    choose: Callable[[Sequence[str]], str | None] = lambda _: None,
) -> Bags:
    """Open shards if the location has a manifest or is a URL, otherwise the feature files there.

    Args:
        location: folder of shards, its URL, a folder of features, or a bundle.
        stated: as in `FeatureFiles`.
        choose: returns the feature set to read, given the names of all, which may be none.

    Raises:
        ConfigError: there is no such feature set.
        DataError: it is neither.
    """
    place = absolute(location)
    if isinstance(place, str) or (place / MANIFEST_NAME).is_file():
        return open_bags(place, None, choose(feature_sets_at(place)))
    if (features := choose(())) is not None:
        raise ConfigError(
            f"features: expected none for feature files, got {features!r}; give shards, or leave it out"
        )
    return FeatureFiles(place, stated=stated)


def encoder_of(bags: Bags, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
    """The rows whose features say which encoder made them, and its name.

    The shards of a data set are of one encoder, so the first bag that names it speaks for all. Of a remote
    data set only the first bag is asked, because a question fetches a shard.
    """
    if isinstance(bags, FeatureFiles):
        for row in rows:
            if name := bags.details(row).get("encoder"):
                yield row, name
        return
    asked = rows if (Path(bags.folder) / MANIFEST_NAME).is_file() else rows[:1]
    for row in asked:
        if name := bags.details(row).get("encoder"):
            yield row, name
            return


def _header(source: "Source") -> Header | str:
    """The header of a slide's features, or the reason why they cannot be read."""
    try:
        found = readers().read_features(source)
    except (DataError, OSError) as error:
        return str(error)
    return Header(found.num_instances, found.num_features, found.dtype, dict(found.details))


def _label(source: "Source") -> str | None:
    label = source.details.get("label")
    return None if label is None else str(label)


def _digest(slides: Sequence[str], sources: Sequence["Source"], folder: Path, stated: Any) -> str:
    """Hash of all that decides the features; of the files, names, lengths and times count."""
    root = folder if folder.is_dir() else folder.parent
    files = [
        (slide, source.place, [_stamp(path, root) for path in source.files()])
        for slide, source in zip(slides, sources, strict=True)
    ]
    document = json.dumps([stated.model_dump(mode="json"), files], default=str)
    return hashlib.sha256(document.encode()).hexdigest()


def _stamp(path: Path, root: Path) -> tuple[str, int, int]:
    state = path.stat()
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return name, state.st_size, state.st_mtime_ns
