"""`CaseBags`: all slides of a case as one bag, read from the shards of the slides as they are.

Dimensions: N cases of the data set or instances of a bag, S slides of the data set, B bags of a batch,
T instances of a batch, D features.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhimdist.data import targets
from mhimdist.data.bags import PackedBags, bag_id
from mhimdist.data.format import FEATURE_DTYPES, escape_key, npy_header, stored_order
from mhimdist.data.split_files import Bags, NamedBags
from mhimdist.data.stored import StoredBags
from mhimdist.data.strata import strata
from mhimdist.errors import DataError, LabelError, SplitError

MAX_NAMED = 3
"""Most cases that a message names with all of their slides."""


class CaseBags(StoredBags):
    """The cases of a data set of slides; a bag has the instances of all slides of a case.

    Nothing is written, and a slide is read where it is. The bags are those of shards into which each case was
    written as one slide of its name: the same keys and ids, so the same masks, in the order of the default
    seed of `data_prep.shard`. Within a bag the slides are in the order of their names.

    Attributes:
        of_slides: the data set of slides.
        The others are those of `StoredBags`.
    """

    bag_of = "case"

    def __init__(self, slides: StoredBags) -> None:
        """Unite the slides of each case.

        Args:
            slides: the data set of slides.

        Raises:
            LabelError: the slides of a case have different labels or targets; the message names the case
                and its slides.
        """
        rows_of_case: dict[str, list[int]] = {}
        for row in sorted(range(len(slides)), key=slides.slides.__getitem__):
            rows_of_case.setdefault(slides.cases[row], []).append(row)
        targets_of = _targets_of_cases(slides, rows_of_case)
        self.cases = tuple(sorted(rows_of_case, key=stored_order))
        self.slides, self.keys = self.cases, tuple(map(escape_key, self.cases))
        self.of_slides, self.features = slides, slides.features
        self._rows = [np.array(rows_of_case[case], np.int64) for case in self.cases]
        first_N = np.array([rows[0] for rows in self._rows], np.int64)
        # What belongs to a bag: a case has it from its slides, which agree.
        self.targets_NK = np.stack([targets_of[case] for case in self.cases])
        self.sizes_N = np.array([slides.sizes_N[rows].sum() for rows in self._rows], np.int64)
        self.ids_N = np.array([bag_id(key) for key in self.keys], np.int64)
        # What belongs to the data set.
        self.name, self.task = slides.name, slides.task
        if self.task.of_classes:
            self.classes, self.labels_N = slides.classes, slides.labels_N[first_N]
        else:  # a stratum depends on all bags, and these are other ones
            self.classes, self.labels_N = strata(self.task, self.targets_NK, self.cases)
        self.num_features = slides.num_features
        self.synthetic, self.description, self.folder = slides.synthetic, slides.description, slides.folder
        self.dtype, self.stored_dtypes = slides.dtype, slides.stored_dtypes
        self.digest = case_digest(slides.digest)
        self._row_of = {key: row for row, key in enumerate(self.keys)}

    @property
    def members(self) -> tuple[tuple[str, ...], ...]:
        """See `StoredBags.members`."""
        return tuple(tuple(self.of_slides.slides[row] for row in rows) for rows in self._rows)

    @property
    def names(self) -> NamedBags:
        """Finds the cases that a split file names, by slide, by key or by case."""
        return _NamedCases(self.of_slides, self.cases)

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """See `StoredBags.rows_of`."""
        if unknown := [key for key in keys if key not in self._row_of]:
            raise DataError(
                f"{self.folder} has no case {unknown[0]!r} ({len(unknown)} of {len(keys)} unknown); its bags "
                "are cases here, not slides (--bag-of case)"
            )
        return np.array([self._row_of[key] for key in keys], dtype=np.int64)

    def dtypes_of(self, rows: Sequence[int] | np.ndarray) -> frozenset[torch.dtype]:
        """See `StoredBags.dtypes_of`."""
        return self.of_slides.dtypes_of(self._flat(rows))

    def is_view(self, rows: Sequence[int] | np.ndarray, dtype: torch.dtype) -> bool:
        """See `StoredBags.is_view`."""
        return self.of_slides.is_view(self._flat(rows), dtype)

    def load(
        self,
        rows: Sequence[int] | np.ndarray,
        dtype: torch.dtype = torch.float32,
        *,
        out: Tensor | None = None,
    ) -> PackedBags:
        """The bags of these rows, packed in this order; see `BagShards.load`."""
        features_TD = self.of_slides.load(self._flat(rows), dtype, out=out).features_TD
        return PackedBags.of_rows(self, np.asarray(rows, np.int64), features_TD)

    def scattered(
        self,
        rows: Sequence[int] | np.ndarray,
        instances: Sequence[np.ndarray],
        dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `StoredBags.scattered`."""
        of_slides: list[int] = []
        chosen: list[np.ndarray] = []
        for row, asked_K in zip(self._checked(rows).tolist(), instances, strict=True):
            ends = accumulate(self.of_slides.sizes_N[self._rows[row]].tolist())
            start, first = 0, 0
            for slide, end in zip(self._rows[row].tolist(), ends, strict=True):
                last = int(np.searchsorted(asked_K, end))
                if last > first:
                    of_slides.append(slide)
                    chosen.append(asked_K[first:last] - start)
                start, first = end, last
        return self.of_slides.scattered(of_slides, chosen, dtype, out=out)

    def fetch_ahead(self, rows: Iterable[int]) -> None:
        """See `StoredBags.fetch_ahead`."""
        self.of_slides.fetch_ahead(slide for row in rows for slide in self._rows[row].tolist())

    def payload(self, row: int) -> np.ndarray:
        """See `StoredBags.payload`; all slides must be stored in one dtype."""
        (name,) = {str(dtype).removeprefix("torch.") for dtype in self.dtypes_of([row])}
        parts = [self.of_slides.payload(slide) for slide in self._rows[row].tolist()]
        if len(parts) == 1:
            return parts[0]
        dtype, shape = FEATURE_DTYPES[name], (int(self.sizes_N[row]), self.num_features)
        header = np.frombuffer(npy_header(dtype, shape), np.uint8)
        united = np.concatenate([header, *(part[len(header) :] for part in parts)])
        united.flags.writeable = False
        return united

    def coords(self, row: int) -> np.ndarray | None:
        """See `StoredBags.coords`."""
        return self._joined([self.of_slides.coords(slide) for slide in self._of(row)])

    def instance_labels(self, row: int) -> np.ndarray | None:
        """See `StoredBags.instance_labels`."""
        return self._joined([self.of_slides.instance_labels(slide) for slide in self._of(row)])

    def details(self, row: int) -> dict[str, Any]:
        """See `StoredBags.details`."""
        first, *others = (self.of_slides.details(slide) for slide in self._of(row))
        return {
            name: value for name, value in first.items() if all(said.get(name) == value for said in others)
        }

    def _of(self, row: int) -> list[int]:
        (row,) = self._checked([row]).tolist()
        return self._rows[row].tolist()

    def _flat(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows of the slides of these cases, int64, in the order in which their instances follow."""
        parts = [self._rows[row] for row in self._checked(rows).tolist()]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _checked(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        rows_B = np.asarray(rows, dtype=np.int64)
        outside = rows_B[(rows_B < 0) | (rows_B >= len(self))]
        if len(outside):
            raise DataError(f"{self.folder} has cases 0 to {len(self) - 1}, got {outside[0]}")
        return rows_B

    @staticmethod
    def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        joined = np.concatenate(known)
        joined.flags.writeable = False
        return joined


class _NamedCases:
    """Finds cases by the names of their slides, all of which must be in one set; or by their own names."""

    def __init__(self, slides: StoredBags, cases: Sequence[str]) -> None:
        self._slides = Bags(slides.keys, slides.slides, slides.cases)
        self._case_of, self._name_of = slides.cases, slides.slides
        self._row_of = {case: row for row, case in enumerate(cases)}

    def rows(self, sets: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
        """See `NamedBags.rows`."""
        found = self._slides.rows(sets)
        named = {row for rows in found.values() for row in rows}
        rows_of: dict[str, set[int]] = {}
        for row, case in enumerate(self._case_of):
            rows_of.setdefault(case, set()).add(row)
        cases = dict.fromkeys(self._case_of[row] for rows in found.values() for row in rows)
        for case in cases:
            if missing := sorted(self._name_of[row] for row in rows_of[case] - named):
                raise SplitError(
                    f"case {case!r} is one bag (--bag-of case), but the split leaves out "
                    f"{', '.join(map(repr, missing))} of its {len(rows_of[case])} slides; name all of them "
                    "or none, or the case alone"
                )
        return {
            name: list(dict.fromkeys(self._row_of[self._case_of[row]] for row in rows))
            for name, rows in found.items()
        }


def case_digest(slides_digest: str) -> str:
    """The digest of the cases of a data set of slides."""
    return hashlib.sha256(f"cases of {slides_digest}".encode()).hexdigest()


def as_one(packed: PackedBags, key: str) -> PackedBags:
    """Bags as one bag, such as the slides of a case; it has the label, or the targets, of the first one.

    Args:
        packed: at least one bag.
        key: the key of the one bag.
    """
    num_rows = len(packed.features_TD)
    return replace(
        packed,
        offsets_B1=packed.offsets_B1.new_tensor([0, num_rows]),
        labels_B=packed.labels_B[:1],
        targets_BK=None if packed.targets_BK is None else packed.targets_BK[:1],
        ids_B=packed.ids_B.new_tensor([bag_id(key)]),
        keys=(key,),
        host_sizes=(num_rows,),
    )


def _targets_of_cases(slides: StoredBags, rows_of_case: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The targets of each case, float64, K; what one slide knows, such as of one of several labels, it knows.

    Raises:
        LabelError: the slides of a case have different labels or targets; the message names such cases, with
            the label of each of their slides.
    """
    found = {case: targets.united(slides.targets_NK[rows]) for case, rows in rows_of_case.items()}
    torn = {
        case: rows
        for case, rows in rows_of_case.items()
        if found[case] is None or (slides.task.of_classes and len(set(slides.labels_N[rows].tolist())) > 1)
    }
    if torn:
        listing = "; ".join(
            f"case {case!r}: " + ", ".join(f"{slides.slides[row]!r} is {_label(slides, row)}" for row in rows)
            for case, rows in list(torn.items())[:MAX_NAMED]
        )
        more = f"; and {len(torn) - MAX_NAMED:,} more cases" if len(torn) > MAX_NAMED else ""
        raise LabelError(
            f"{slides.folder}: --bag-of case makes one bag of all slides of a case, which need one label. "
            f"{len(torn):,} of {len(rows_of_case):,} cases have several: {listing}{more}. Write the shards "
            "with one label per case, or take slides as bags (--bag-of slide)"
        )
    return {case: targets_K for case, targets_K in found.items() if targets_K is not None}


def _label(slides: StoredBags, row: int) -> str:
    """The label of a slide in words: its class, or the targets that it has."""
    if slides.task.of_classes:
        return slides.classes[slides.labels_N[row]]
    named = zip(slides.task.columns, slides.targets_NK[row].tolist(), strict=True)
    return " and ".join(f"{name} {'unknown' if np.isnan(target) else repr(target)}" for name, target in named)
