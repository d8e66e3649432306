"""`Split`: which bags train, select and test; always whole cases, so that no patient is in two sets."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mhimdist import files
from mhimdist.data.case_draws import most_alike, rows_of_folds, take
from mhimdist.data.split_files import Bags, NamedBags, folds_in
from mhimdist.data.stored import StoredBags
from mhimdist.errors import SplitError


@dataclass(frozen=True)
class Split:
    """The keys of the bags that train, select (validation) and test.

    Attributes:
        train, validation, test: keys of the bags.
        selects_on_test: the authors' protocol, in which the test bags are also the validation bags: epoch,
            early stop and threshold come from them, so metrics on them are optimistic.

    Raises:
        SplitError: by `check`, if the split does not fit a data set; by `load`, if the file holds no split.

    Example:
        >>> split = mh.Split(train=("a", "b"), validation=("c",), test=("d",))
        >>> sorted(split.sets)
        ['test', 'train', 'validation']
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    selects_on_test: bool = False

    @property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """The three sets by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def whole(self) -> "Split":
        """The split in which all bags that do not test train, and none validates.

        A network that trains on it takes its number of epochs and its threshold from elsewhere.
        """
        train = self.train if self.selects_on_test else (*self.train, *self.validation)
        return Split(tuple(sorted(train)), (), self.test)

    def check(
        self,
        keys: Sequence[str],
        cases: Sequence[str],
        labels_N: np.ndarray,
        classes: Sequence[str] | None = None,
        *,
        strata: bool = False,
        validates: bool = True,
    ) -> None:
        """Check that the split fits the data set and that no case is in two of its sets.

        Only a split with `selects_on_test` may validate on its test bags, and then on all of them. Every
        class must be in the train set. The other two sets need two classes, which an AUC takes; see
        `missing_classes` for those that they lack. Strata of targets may be in any set, or in none: what
        such bags must have is for `Task.check` to say.

        Args:
            keys: key of every bag of the data set.
            cases: case of every bag.
            labels_N: class index of every bag.
            classes: names of all classes; None: the classes that the data have, named by their numbers.
            strata: whether the labels are strata of targets, not classes.
            validates: whether a run on the split validates; otherwise its validation set must be empty.

        Raises:
            SplitError: a set is empty, a bag is unknown or used twice, a case is in two sets, all bags of a
                set have the same class, or no bag of the train set has one of the classes.
        """
        names = _names(labels_N, classes)
        label_of = dict(zip(keys, labels_N, strict=True))
        self.check_sets(keys, cases, validates=validates)
        if strata:
            return
        for name, members in self._own_sets(validates).items():
            present = {int(label_of[key]) for key in members}
            if len(present) < 2:
                what = "there is nothing to learn" if name == "train" else "its AUC is undefined"
                same = f"all bags of the {name} set have the same class, {names[next(iter(present))]}"
                lacking = " or ".join(names[label] for label in names if label not in present)
                raise SplitError(f"{same}: {what} without a case of {lacking or 'another class'}; {_REMEDY}")
            if name == "train" and (missing := [names[label] for label in names if label not in present]):
                raise SplitError(
                    f"the train set has no case of {', '.join(missing)}, so nothing can learn it; {_REMEDY}"
                )

    def check_sets(self, keys: Sequence[str], cases: Sequence[str], *, validates: bool = True) -> None:
        """The part of `check` that knows no label.

        Args:
            keys, cases, validates: as in `check`.

        Raises:
            SplitError: a set is empty, a bag is unknown or used twice, or a case is in two sets.
        """
        case_of = dict(zip(keys, cases, strict=True))
        seen: dict[str, str] = {}
        for name, members in self._own_sets(validates).items():
            if not members:
                raise SplitError(f"the {name} set is empty")
            unknown = [key for key in members if key not in case_of]
            if unknown:
                raise SplitError(
                    f"{len(unknown)} bags of the {name} set are not in the data, the first is {unknown[0]!r}"
                )
            if len(set(members)) < len(members):
                raise SplitError(f"the {name} set lists a bag twice")
            for case in {case_of[key] for key in members}:
                if case in seen:
                    raise SplitError(f"case {case!r} is in both the {seen[case]} and the {name} set")
                seen[case] = name

    def _own_sets(self, validates: bool) -> dict[str, tuple[str, ...]]:
        """The sets that share no bag: without the validation set, if it is the test set or not needed."""
        sets = self.sets
        if self.selects_on_test and sets.pop("validation") != self.test:
            raise SplitError("a split that selects on its test bags must validate on exactly those bags")
        if not validates and sets.pop("validation", ()):
            raise SplitError(
                "expected no validation set, as the number of epochs is given, got "
                f"{len(self.validation)} bags: use split.whole()"
            )
        return sets

    def missing_classes(
        self, keys: Sequence[str], labels_N: np.ndarray, classes: Sequence[str]
    ) -> dict[str, list[str]]:
        """The classes that validation and test have no bag of, by the set's name; empty if they lack none.

        Args:
            keys: key of every bag of the data set.
            labels_N: class index of every bag.
            classes: names of all classes.
        """
        label_of = dict(zip(keys, labels_N.tolist(), strict=True))
        found = {}
        for name in ("validation", "test") if self.validation else ("test",):
            present = {label_of[key] for key in self.sets[name]}
            if missing := [text for label, text in enumerate(classes) if label not in present]:
                found[name] = missing
        return found

    def digest(self) -> str:
        """A hash of the three sets and of `selects_on_test`, 16 hex digits."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()

    def save(self, path: Path) -> None:
        """Write the split as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Read a split that `save` wrote.

        Raises:
            SplitError: the file does not hold a split.
        """
        try:
            return cls._of(files.parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SplitError(
                f"{path} does not hold a split into train, validation and test: {error}"
            ) from None

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> "Split":
        sets: dict[str, Any] = {
            name: tuple(map(str, members)) for name, members in content.items() if name != _FLAG
        }
        return cls(**sets, selects_on_test=content.get(_FLAG) is True)


_FLAG = "selects_on_test"
_REMEDY = (
    "give another split or more cases of the class, or write the shards with the class joined to another "
    "one (--class-map)"
)


def _names(labels_N: np.ndarray, classes: Sequence[str] | None) -> dict[int, str]:
    """The name of each class by its index: that of the data set, otherwise the index itself."""
    if classes is not None:
        return dict(enumerate(classes))
    return {int(label): str(label) for label in np.unique(labels_N)}


def splits_of(
    bags: StoredBags,
    *,
    validation_share: float,
    seed: int,
    split_file: Path | None = None,
    test_share: float | None = None,
    num_folds: int = 3,
    selects_on_test: bool = False,
) -> list[Split]:
    """The splits of a data set: from a file, otherwise one holdout, otherwise folds of whole cases.

    Args:
        bags: the data set.
        validation_share: share of the cases to validate on, in [0, 1): in a holdout of all cases, otherwise
            of the cases that do not test.
        seed: seed of the draws.
        split_file: a table or JSON, see `from_file`; it takes precedence over the next two.
        test_share: share of the cases to test on, for one holdout.
        num_folds: number of folds if neither a file nor a test share is given.
        selects_on_test: the authors' protocol, see `Split`.

    Raises:
        SplitError: the file does not fit the data, or there are too few cases.
    """
    cases, labels_N = bags.cases, bags.labels_N
    drawn: dict[str, Any] = {
        "validation_share": validation_share,
        "selects_on_test": selects_on_test,
        "seed": seed,
        "classes": bags.classes,
        "strata": not bags.task.of_classes,
    }
    if split_file is not None:
        return from_file(split_file, bags.keys, bags.slides, cases, labels_N, names=bags.names, **drawn)
    if test_share is not None:
        return [holdout(bags.keys, cases, labels_N, test_share=test_share, **drawn)]
    return k_folds(bags.keys, cases, labels_N, num_folds=num_folds, **drawn)


def holdout(
    keys: Sequence[str],
    cases: Sequence[str],
    labels_N: np.ndarray,
    *,
    test_share: float,
    validation_share: float,
    selects_on_test: bool = False,
    seed: int,
    classes: Sequence[str] | None = None,
    strata: bool = False,
) -> Split:
    """One split by case, with class proportions as close to those of all bags as cases allow.

    Args:
        keys: key of every bag.
        cases: case of every bag.
        labels_N: class index of every bag.
        test_share: share of the cases to test on, in (0, 1).
        validation_share: share of the cases to select on, in (0, 1); with `selects_on_test` also 0.
        selects_on_test: the authors' protocol, as in `k_folds`.
        seed: seed of the draws.
        classes, strata: names of all classes, and whether they are strata, as in `Split.check`.

    Raises:
        SplitError: there are too few cases, or a class is too rare, for such a split.

    Example:
        >>> import numpy as np
        >>> keys = [f"slide-{i}" for i in range(10)]
        >>> split = mh.holdout(keys, keys, np.arange(10) % 2, test_share=0.2, validation_share=0.2, seed=0)
        >>> len(split.train), len(split.validation), len(split.test)
        (6, 2, 2)
    """
    num_cases = len(set(cases))
    num_test, num_validation = (max(1, round(share * num_cases)) for share in (test_share, validation_share))
    if selects_on_test and not validation_share:
        num_validation = 0
    if num_test + num_validation >= num_cases:
        raise SplitError(
            f"{num_cases} cases cannot make {num_test} to test, {num_validation} to validate and any to train"
        )
    rows_N, cases_N = np.arange(len(keys)), np.asarray(cases)
    rest, test = most_alike(rows_N, labels_N, cases_N, num_test, seed)
    train, validation = rest, rest[:0]
    if num_validation:
        train, validation = most_alike(rest, labels_N, cases_N, num_validation, seed + 1)
    split = _split(keys, train, test if selects_on_test else validation, test, selects_on_test)
    split.check(keys, cases, labels_N, classes, strata=strata)
    return split


def k_folds(
    keys: Sequence[str],
    cases: Sequence[str],
    labels_N: np.ndarray,
    *,
    num_folds: int,
    validation_share: float,
    selects_on_test: bool = False,
    seed: int,
    classes: Sequence[str] | None = None,
    strata: bool = False,
) -> list[Split]:
    """Splits by case whose test sets are the folds of the data, so that every bag is tested exactly once.

    The folds depend only on the cases, the labels and the seed, so both protocols test on the same bags.

    Args:
        keys: key of every bag.
        cases: case of every bag; a slide without a patient is a separate case.
        labels_N: class index of every bag.
        num_folds: number of folds, at least 2; their class shares are as similar as cases allow.
        validation_share: share of a training fold's cases that is taken out of it to select on.
        selects_on_test: the authors' protocol: the test bags select. The validation share is still taken out
            of the training fold, but not used; 0 leaves the training fold whole.
        seed: seed of the draws.
        classes, strata: names of all classes, and whether they are strata, as in `Split.check`.

    Raises:
        SplitError: there are too few cases, or a class is too rare, for such folds.

    Example:
        >>> import numpy as np
        >>> keys = [f"slide-{i}" for i in range(12)]
        >>> labels_N = np.arange(12) % 2
        >>> folds = mh.k_folds(keys, keys, labels_N, num_folds=3, validation_share=0.25, seed=0)
        >>> [(len(fold.train), len(fold.validation), len(fold.test)) for fold in folds]
        [(6, 2, 4), (6, 2, 4), (6, 2, 4)]
    """
    cases_N, names = np.asarray(cases), None if strata else _names(labels_N, classes)
    splits = []
    for number, (rest, test) in enumerate(rows_of_folds(cases_N, labels_N, num_folds, seed, names)):
        if selects_on_test and not validation_share:
            train, validation = rest, rest[:0]
        else:
            train, validation = take(rest, labels_N, cases_N, validation_share, seed + 1 + number)
        if selects_on_test:
            validation = test
        split = _split(keys, train, validation, test, selects_on_test)
        try:
            split.check(keys, cases, labels_N, classes, strata=strata)
        except SplitError as error:
            raise SplitError(f"fold {number + 1} of {num_folds}: {error}") from None
        splits.append(split)
    return splits


def from_file(
    path: Path,
    keys: Sequence[str],
    slides: Sequence[str],
    cases: Sequence[str],
    labels_N: np.ndarray,
    *,
    validation_share: float,
    selects_on_test: bool = False,
    seed: int,
    classes: Sequence[str] | None = None,
    strata: bool = False,
    names: NamedBags | None = None,
) -> list[Split]:
    """The splits in a file, such as an official one: a single split, or one per fold.

    Read are our tables and JSON, and those of CLAM, MIL_BASELINE and Patho-Bench; see `split_files`. Names of
    slides differ from those of the data by folders and suffixes at most, as in label tables. If the file
    names no validation set, a share of the training cases becomes one.

    Args:
        path: the file, or a folder of one file per fold; it names bags by slide, by key or by case.
        keys: key of every bag.
        slides: slide of every bag.
        cases: case of every bag.
        labels_N: class index of every bag.
        validation_share, selects_on_test, seed, classes, strata: as in `k_folds`.
        names: finds the bags that the file names; None finds them by slide, key or case.

    Raises:
        SplitError: the file is unreadable as such, or one of its splits does not fit the data; the message
            names it.
    """
    bags = names or Bags(keys, slides, cases)
    splits = []
    for number, (name, sets) in enumerate(folds_in(path).items()):
        where = f"{path}, {name}" if name else str(path)
        try:
            rows = {kind: np.array(members, int) for kind, members in bags.rows(sets).items()}
            _refuse_no_test(rows, selects_on_test=selects_on_test)
            train, validation = rows["train"], rows["validation"]
            if not len(validation) and (validation_share or not selects_on_test):
                train, validation = take(train, labels_N, np.asarray(cases), validation_share, seed + number)
            if selects_on_test:
                validation = rows["test"]
            split = _split(keys, train, validation, rows["test"], selects_on_test)
            split.check(keys, cases, labels_N, classes, strata=strata)
        except SplitError as error:
            raise SplitError(f"{where}: {error}") from None
        splits.append(split)
    return splits


def _refuse_no_test(rows: Mapping[str, np.ndarray], *, selects_on_test: bool) -> None:
    """Refuse the sets of others in which no bag is left to test on that does not select."""
    validation, test = set(rows["validation"].tolist()), set(rows["test"].tolist())
    if validation and not test:
        raise SplitError("the test set is empty: call the set that tests `test`, not a validation set")
    if validation and validation == test and not selects_on_test:
        raise SplitError(
            "its validation set is its test set, so that a result would be chosen on what it is tested on; "
            "remove the validation set from the file, or cross-validate with --protocol paper"
        )


def _split(
    keys: Sequence[str], train: np.ndarray, validation: np.ndarray, test: np.ndarray, selects_on_test: bool
) -> Split:
    first, second, third = (tuple(keys[row] for row in rows) for rows in (train, validation, test))
    return Split(first, second, third, selects_on_test)
