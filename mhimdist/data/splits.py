"""Which bags train, select and test: always whole cases, so that no patient stands on both sides."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupShuffleSplit

from mhimdist.errors import SplitError


@dataclass(frozen=True)
class Split:
    """The keys of the bags that train, select (validation) and test."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def check(self, keys: Sequence[str], cases: Sequence[str], labels_N: np.ndarray) -> None:
        """Prove that the split fits the data set and that no case stands in two of its sets.

        Raises:
            SplitError: a set is empty, a bag is unknown or used twice, a case stands in two sets, or the
                validation or test bags are all of one class.
        """
        case_of, label_of = dict(zip(keys, cases, strict=True)), dict(zip(keys, labels_N, strict=True))
        seen: dict[str, str] = {}
        for name, members in asdict(self).items():
            if not members:
                raise SplitError(f"the {name} set is empty")
            unknown = [key for key in members if key not in case_of]
            if unknown:
                raise SplitError(
                    f"{len(unknown)} bags of the {name} set are not in the data, the first is {unknown[0]!r}"
                )
            if len(set(members)) < len(members):
                raise SplitError(f"the {name} set lists a bag twice")
            if name != "train" and len({label_of[key] for key in members}) < 2:
                raise SplitError(f"all bags of the {name} set are of one class: its AUC is undefined")
            for case in {case_of[key] for key in members}:
                if case in seen:
                    raise SplitError(f"case {case!r} stands in both the {seen[case]} and the {name} set")
                seen[case] = name

    def digest(self) -> str:
        """A hash of the three sets, 16 hex digits."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()

    def save(self, path: Path) -> None:
        """Write the split as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Read a split that `save` wrote.

        Raises:
            SplitError: the file is not a split.
        """
        try:
            sets = json.loads(path.read_text())
            return cls(**{name: tuple(map(str, members)) for name, members in sets.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SplitError(f"{path} is no split of train, validation and test: {error}") from None


def holdout(
    keys: Sequence[str],
    cases: Sequence[str],
    labels_N: np.ndarray,
    *,
    test_share: float,
    validation_share: float,
    seed: int,
) -> Split:
    """One split by case, with class proportions as near to the whole's as cases allow.

    Args:
        keys, cases, labels_N: of all bags.
        test_share: share of the cases to test on, in (0, 1).
        validation_share: share of the cases to select on, in (0, 1).
        seed: of the draw.

    Raises:
        SplitError: there are too few cases, or a class too rare, for such a split.
    """
    num_cases = len(set(cases))
    num_test, num_validation = (max(1, round(share * num_cases)) for share in (test_share, validation_share))
    if num_test + num_validation >= num_cases:
        raise SplitError(
            f"{num_cases} cases cannot make {num_test} to test, {num_validation} to validate and any to train"
        )
    rows_N, cases_N = np.arange(len(keys)), np.asarray(cases)
    rest, test = _most_alike(rows_N, labels_N, cases_N, num_test, seed)
    train, validation = _most_alike(rest, labels_N, cases_N, num_validation, seed + 1)
    split = Split(*(tuple(keys[row] for row in rows) for rows in (train, validation, test)))
    split.check(keys, cases, labels_N)
    return split


def _most_alike(
    rows: np.ndarray, labels_N: np.ndarray, cases_N: np.ndarray, num_cases: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of 100 draws of `num_cases` cases, the one whose class shares are closest to those of all rows."""
    classes = np.unique(labels_N)
    target = np.array([(labels_N[rows] == c).mean() for c in classes])
    draws = GroupShuffleSplit(100, test_size=num_cases, random_state=seed % 2**32)
    distance, best = np.inf, None
    for kept, drawn in draws.split(rows, groups=cases_N[rows]):
        shares = np.array([(labels_N[rows[drawn]] == c).mean() for c in classes])
        if (gap := np.abs(shares - target).sum()) < distance:
            distance, best = gap, (rows[kept], rows[drawn])
    assert best is not None
    return best
