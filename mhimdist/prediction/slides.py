"""The slides with their cases and labels, and the refusal of slides that a model cannot predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mhimdist.data import targets
from mhimdist.data.feature_sets import TOGETHER
from mhimdist.data.format import escape_key
from mhimdist.data.remote import Location
from mhimdist.data.stored import BagOf
from mhimdist.errors import ConfigError, DataError, LabelError
from mhimdist.prediction.members import Member
from mhimdist.prediction.options import Prediction
from mhimdist.prediction.sources import UNKNOWN, Bags, FeatureFiles, encoder_of, open_source, readers
from mhimdist.prediction.targets import refuse_other_targets, target_columns

MAX_NAMED = 5


@dataclass(frozen=True)
class Slides:
    """The slides to predict.

    Attributes:
        bags: loads their features.
        rows: row numbers of the slides in `bags`; rows that are left out are not predicted.
        slides, cases: slide and case of every row, in the order of `rows`.
        labels: class of every row; None if it is unknown.
        encoder: the encoder of the features; None if nothing says it.
        left_out: why a slide is not predicted, by slide.
        warnings: what the user should know.
        said: float64 targets of each slide as a table says them, NaN where it says none, by row; None
            without a table, or if the model's labels are classes.
        united: where bags are cases, the rows of the slides of each; `rows` then has the first one of each,
            and `slides` the cases.
    """

    bags: Bags
    rows: tuple[int, ...]
    slides: tuple[str, ...]
    cases: tuple[str, ...]
    labels: tuple[str | None, ...]
    encoder: str | None
    left_out: dict[str, str]
    warnings: tuple[str, ...]
    said: Mapping[int, np.ndarray] | None = None
    united: tuple[tuple[int, ...], ...] = ()

    @property
    def bag_of(self) -> BagOf:
        """What one bag is."""
        return "case" if self.united else "slide"

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of every bag."""
        if self.united:
            return tuple(map(escape_key, self.cases))
        return tuple(self.bags.keys[row] for row in self.rows)

    def names_of(self, place: int) -> set[str]:
        """The keys under which a run may know a bag: those of its slides, and of its case."""
        return {self.bags.keys[row] for row in self.groups[place]} | {escape_key(self.cases[place])}

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The rows of the slides of every bag."""
        return self.united or tuple((row,) for row in self.rows)

    def by_case(self) -> "Slides":
        """All slides of each case as one bag, in the order of their names; a case takes the place of a slide.

        A case whose slides have different labels has none, and a warning says so.
        """
        places: dict[str, list[int]] = {}
        for place in sorted(range(len(self)), key=self.slides.__getitem__):
            places.setdefault(self.cases[place], []).append(place)
        order = sorted(places, key=lambda case: min(places[case]))
        said = {case: {self.labels[place] for place in each} - {None} for case, each in places.items()}
        rows = {case: tuple(self.rows[place] for place in each) for case, each in places.items()}
        torn = [case for case in order if len(said[case]) > 1 or self._targets_of(rows[case]) is None]
        warnings = list(self.warnings)
        if torn:
            warnings.append(
                f"{len(torn):,} cases have slides of different labels and count as unlabelled, such as "
                f"{torn[0]!r}"
            )
        return replace(
            self,
            rows=tuple(rows[case][0] for case in order),
            slides=tuple(order),
            cases=tuple(order),
            labels=tuple(next(iter(said[case])) if len(said[case]) == 1 else None for case in order),
            warnings=tuple(warnings),
            united=tuple(rows[case] for case in order),
        )

    def _targets_of(self, rows: Sequence[int]) -> np.ndarray | None:
        said_NK = self.bags.targets_NK[list(rows)] if self.said is None else [self.said[row] for row in rows]
        return targets.united(np.stack(list(said_NK)))

    @property
    def targets_NK(self) -> np.ndarray:
        """The targets of every bag, float64, NaN where one is unknown or its slides have different ones."""
        width = self.bags.targets_NK.shape[1] if self.said is None else len(next(iter(self.said.values())))
        unknown_K = np.full(width, np.nan)
        found = [self._targets_of(rows) for rows in self.groups]
        return np.stack([unknown_K if each_K is None else each_K for each_K in found])

    def __len__(self) -> int:
        return len(self.rows)

    def labels_N(self, classes: Sequence[str]) -> np.ndarray:
        """Class index of every row, int64; `UNKNOWN` for none."""
        index: dict[str | None, int] = {name: i for i, name in enumerate(classes)} | {None: UNKNOWN}
        return np.array([index[label] for label in self.labels], np.int64)

    def several(self) -> dict[str, list[int]]:
        """The positions of the slides of each case that has more than one slide."""
        places: dict[str, list[int]] = {}
        for place, case in enumerate(self.cases):
            places.setdefault(case, []).append(place)
        return {case: each for case, each in places.items() if len(each) > 1}


def open_slides(location: Location, options: Prediction, member: Member) -> Slides:
    """Open the slides, and refuse what the model was not made for before anything runs.

    Args:
        location: shards or features, as in `open_source`.
        options: labels, cases, and what the user states about the features.
        member: one of the models; the others agree with it.

    Raises:
        DataError: features are of another width or encoder than the model's, or cannot be read.
        LabelError: a label is not a class of the model, or the table has none of the slides.
    """
    door = readers()
    stated = door.Stated(
        feature_key=options.feature_key, encoder=options.encoder, patch_size=options.patch_size
    )
    bags = open_source(location, stated=stated, choose=partial(_features, options.features, member, location))
    left_out = dict(bags.unreadable) if isinstance(bags, FeatureFiles) else {}
    rows = list(range(len(bags)))
    rows, narrow = _of_width(bags, rows, member)
    left_out |= narrow
    if left_out and not options.skip_bad:
        raise DataError(_cannot(left_out, len(bags) + len(left_out) - len(narrow)))
    if not rows:
        raise DataError(_cannot(left_out, len(bags)))
    warnings = []
    encoder = _encoder(bags, rows, options.encoder, member)
    if encoder is None:
        warnings.append("the features do not say which encoder made them; only their width was compared")
    elif member.features.get("encoder") is None:
        warnings.append(
            "the model does not say which encoder it was trained with; only the width was compared"
        )
    _refuse_other_scale(bags, rows[0], member)
    warnings += _patch_size(bags, rows[0], options.patch_size, member)
    slides = tuple(bags.slides[row] for row in rows)
    cases, labels, said, targets_NK = _cases_and_labels(bags, rows, options, door, member)
    _refuse_labels(slides, labels, member)
    warnings += said
    said_of = None if targets_NK is None else dict(zip(rows, targets_NK, strict=True))
    return Slides(bags, tuple(rows), slides, cases, labels, encoder, left_out, tuple(warnings), said_of)


def _features(asked: str | None, member: Member, location: Location, names: Sequence[str]) -> str | None:
    """The feature set to predict from: the one that was asked for, or the one that the model was trained on.

    Raises:
        ConfigError: the data set has no set of this name, and the model does not tell which it takes.
    """
    if asked is not None or not names:
        return asked
    wanted, encoder = member.feature_set, member.features.get("encoder")
    if wanted is not None:
        if set(wanted.split(TOGETHER)) <= set(names):
            return wanted
    elif encoder in names:
        return str(encoder)
    if len(names) == 1:
        return None  # its encoder is compared with the model's
    trained = wanted or encoder
    raise ConfigError(
        f"features: the model in {member.folder} was trained on {trained or 'features without a name'}, and "
        f"{location} has the feature sets {', '.join(names)}; give --features with the one of the same "
        "encoder"
    )


def _refuse_other_scale(bags: Bags, row: int, member: Member) -> None:
    """Refuse features that were standardised in another way than those that the model was trained on.

    Raises:
        DataError: they were.
    """
    expected, got = member.features.get("standardized"), bags.details(row).get("standardized")
    if expected == got:
        return
    if expected is None:
        raise DataError(
            f"{bags.folder}: its features are standardised ({got}), and the model in {member.folder} was "
            "trained on features as their encoder made them; give those"
        )
    raise DataError(
        f"{bags.folder}: expected features standardised as those that trained the model in {member.folder} "
        f"({expected}), got {f'another scale ({got})' if got else 'others'}; make shards of them by "
        "data_prep.shard --standardize-as with the data set that it was trained on"
    )


def _of_width(bags: Bags, rows: list[int], member: Member) -> tuple[list[int], dict[str, str]]:
    """The rows of the model's width, and why the others cannot be predicted, by slide."""
    if not isinstance(bags, FeatureFiles):
        if bags.num_features != member.num_features:
            raise DataError(_width(str(bags.folder), bags.num_features, member))
        return rows, {}
    widths = [bags.headers[row].num_features for row in rows]
    if member.num_features not in widths:
        raise DataError(_width(f"slide {bags.slides[0]!r} of {bags.folder}", widths[0], member))
    bags.num_features = member.num_features
    wrong = {
        bags.slides[row]: _width(f"slide {bags.slides[row]!r}", width, member)
        for row, width in zip(rows, widths, strict=True)
        if width != member.num_features
    }
    return [row for row in rows if bags.slides[row] not in wrong], wrong


def _width(what: str, got: int, member: Member) -> str:
    named = f" of {encoder}" if (encoder := member.features.get("encoder")) else ""
    return (
        f"{what}: expected {member.num_features:,} features per instance{named}, as the model in "
        f"{member.folder} takes, got {got:,}; give features of the encoder that it was trained with"
    )


def _cannot(left_out: dict[str, str], num_slides: int) -> str:
    reasons = "; ".join(list(left_out.values())[:MAX_NAMED])
    return (
        f"{len(left_out):,} of {num_slides:,} slides cannot be predicted (--skip-bad leaves them out): "
        f"{reasons}"
    )


def _encoder(bags: Bags, rows: Sequence[int], stated: str | None, member: Member) -> str | None:
    """The encoder of the features.

    Raises:
        DataError: it is not that of the model.
    """
    expected, found = member.features.get("encoder"), stated
    for row, name in encoder_of(bags, rows):
        if stated is not None and name != stated:
            raise DataError(
                f"slide {bags.slides[row]!r}: its encoder is {name!r}, but --encoder says {stated!r}"
            )
        if expected is not None and name != expected:
            raise DataError(
                f"slide {bags.slides[row]!r} of {bags.folder}: expected features of {expected!r}, which the "
                f"model in {member.folder} was trained with, got features of {name!r}"
            )
        found = found or name
    if found is not None and expected is not None and found != expected:
        raise DataError(
            f"--encoder says {found!r}, but the model in {member.folder} was trained with {expected!r}"
        )
    return found


def _patch_size(bags: Bags, row: int, stated: int | None, member: Member) -> list[str]:
    """A warning if patches are of another size than those that the model was trained with."""
    expected = member.features.get("patch_size")
    got = stated or bags.details(row).get("patch_size")
    if not expected or not got or expected == got:
        return []
    return [f"the model was trained with patches of {expected} pixels, the patches here have {got}"]


def _cases_and_labels(
    bags: Bags, rows: Sequence[int], options: Prediction, door: Any, member: Member
) -> tuple[tuple[str, ...], tuple[str | None, ...], list[str], np.ndarray | None]:
    """Case and label of every row, warnings, and the targets that a table says.

    Raises:
        LabelError: the table is unusable, or has none of the slides.
    """
    slides, cases = [bags.slides[row] for row in rows], [bags.cases[row] for row in rows]
    labels: list[str | None] = [None] * len(rows)
    warnings, targets_NK = [], None
    wanted = target_columns(options, member, door)
    if options.labels is not None:
        columns = door.Columns(options.slide_column, options.label_column, options.case_column, wanted)
        known = set(bags.slides)
        found = door.read_labels(options.labels, columns=columns, known=known, skip_missing=True)
        if wanted is not None:
            refuse_other_targets(options.labels, found.task, member)
        table = door.without_suffixes(found.rows, known)
        said = {row.slide: row for row in table}
        if not any(slide in said for slide in slides):
            raise LabelError(
                f"{options.labels}: none of its {len(said):,} slides has features in {bags.folder}; its "
                f"first slide is {next(iter(said))!r}, the first with features {slides[0]!r}"
            )
        if wanted is None:
            labels = [said[slide].label if slide in said else None for slide in slides]
        else:
            nothing = (None,) * len(member.task.info.columns)
            cells = [said[slide].targets if slide in said else nothing for slide in slides]
            targets_NK = np.array(cells, dtype=np.float64)
        cases = [
            said[slide].case if slide in said and said[slide].case != slide else case
            for slide, case in zip(slides, cases, strict=True)
        ]
        if missing := [slide for slide in slides if slide not in said]:
            warnings.append(
                f"{len(missing):,} of {len(slides):,} slides have no label in {options.labels}: "
                f"{door.some(missing, MAX_NAMED)}"
            )
        if absent := [slide for slide in said if slide not in set(bags.slides)]:
            warnings.append(
                f"{len(absent):,} slides of {options.labels} have no features: {door.some(absent, MAX_NAMED)}"
            )
    elif not options.ignore_labels:
        labels = [_own_label(bags, row) for row in rows]
    if options.case_from == "tcga":
        barcodes = [door.SlideLabel(slide, slide, "") for slide in slides]
        cases = [row.case for row in door.cases_of_barcodes(barcodes)]
    return tuple(cases), tuple(labels), warnings, targets_NK


def _own_label(bags: Bags, row: int) -> str | None:
    return bags.labels[row] if isinstance(bags, FeatureFiles) else bags.classes[bags.labels_N[row]]


def _refuse_labels(slides: Sequence[str], labels: Sequence[str | None], member: Member) -> None:
    """Refuse labels that are not classes of the model.

    Raises:
        LabelError: a slide has such a label.
    """
    if not member.task.has_classes:
        return  # the truth of such a task are targets
    for slide, label in zip(slides, labels, strict=True):
        if label is not None and label not in member.classes:
            raise LabelError(
                f"slide {slide!r} has the label {label!r}, expected one of the classes of the model in "
                f"{member.folder}: {', '.join(member.classes)}; give --labels with these names, or "
                "--ignore-labels"
            )


def shown(location: Location) -> str:
    """The location as text, for files and messages."""
    return str(location.expanduser().resolve()) if isinstance(location, Path) else location
