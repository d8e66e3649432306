"""Split files, ours and those of other projects: on which slides or cases each fold trains and tests."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mhimdist import files
from mhimdist.errors import SplitError
from mhimdist.tables.cells import is_missing
from mhimdist.tables.columns import CASE, SLIDE, Kind, find, headed, known_names, plain
from mhimdist.tables.names import KnownNames, begins_names, examples, rule_that_joins
from mhimdist.tables.reading import LFS_POINTER, Table, read_table

Sets = dict[str, list[str]]
"""The names of slides, keys or cases by set."""

SETS = ("train", "validation", "test")
_SET_OF = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "validate", "dev", "tune", "tuning"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_SET_COLUMN = Kind("set", ("set",), ("split", "subset", "partition", "phase", "data_split", "set_name"))
_FOLD_COLUMN = Kind("fold", ("fold",), ("folds", "fold_id", "cv_fold", "kfold", "fold_number"))
_MEMBERS = re.compile(
    r"([a-z]+?)(set|slides?|slideids?|slidepaths?|paths?|ids?|cases?|caseids?|files?|images?)?"
)
"""A column that lists the members of a set, after `plain`: train, val_slide_path, test_ids."""
_FOLD = re.compile(r"(?:(?:fold|split)[\s_-]*)?([0-9]+)(?:[.,]0+)?", re.IGNORECASE)
"""The number of a fold in a cell: 1, 1.0, 1,0, fold_1."""
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")
_CLAM = re.compile(r"splits_[0-9]+\.csv", re.IGNORECASE)
_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods", ".parquet", ".json")

EXPECTED = (
    "expected the columns slide,set and, for several folds, fold; or train,val,test, each a list of slides "
    "(CLAM, MIL_BASELINE); or slide and fold_0, fold_1, ... that say train or test (Patho-Bench); or slide "
    "and fold, the number of the fold that tests it; or JSON of "
    '{"train": [...], "val": [...], "test": [...]} or a list of these; or a folder of one such file per fold '
    "or of train.csv, val.csv and test.csv"
)


def folds_in(path: Path) -> dict[str, Sets]:
    """The sets of each fold in a file, or in a folder of files of one split each, by the fold's name.

    A single split has the name "". The sets hold names as the file writes them.

    Raises:
        SplitError: the file or the folder cannot be read, or holds no split that is known.
    """
    if path.is_dir():
        return _of_folder(path)
    try:
        if _is_json(path):
            folds = _of_json(path)
        else:
            folds = _of_table(read_table(path, error=SplitError, header_alone=True))
        if not folds:
            raise ValueError("it holds no folds")
    except SplitError as error:
        raise SplitError(f"{error}; {EXPECTED}") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise SplitError(
            f"{path} does not hold a split into train, validation and test: {error}; {EXPECTED}"
        ) from None
    return folds


class NamedBags(Protocol):
    """Finds the bags that a split file names."""

    def rows(self, sets: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
        """The rows of the bags of each set, in the order in which they are named.

        Raises:
            SplitError: a name is that of no bag, or could be that of several slides.
        """


class Bags:
    """Finds the bags that a split file names by slide, by key or by case, as label tables name slides.

    Args:
        keys: key of every bag.
        slides: slide of every bag.
        cases: case of every bag.
    """

    def __init__(self, keys: Sequence[str], slides: Sequence[str], cases: Sequence[str]):
        self._row_of = {name: row for names in (slides, keys) for row, name in enumerate(names)}
        self._slides = tuple(slides)
        self._names = KnownNames(slides)
        self._rows_of_case: dict[str, list[int]] = defaultdict(list)
        for row, case in enumerate(cases):
            self._rows_of_case[case].append(row)
        self._cases = KnownNames(self._rows_of_case)

    def rows(self, sets: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
        """The rows of the bags of each set, in the order in which they are named.

        Raises:
            SplitError: a name is that of no bag, or could be that of several slides.
        """
        found = {
            name: [row for member in members for row in self._of(member)] for name, members in sets.items()
        }
        unknown = [member for members in sets.values() for member in members if not self._of(member)]
        if not unknown:
            return found
        if all(len(self._cases.meant_by(member)) == 1 for members in sets.values() for member in members):
            return {
                name: [
                    row
                    for member in members
                    for case in self._cases.meant_by(member)
                    for row in self._rows_of_case[case]
                ]
                for name, members in sets.items()
            }
        used = {row for rows in found.values() for row in rows}
        free = [slide for row, slide in enumerate(self._slides) if row not in used]
        raise SplitError(
            f"{len(unknown)} slides are not in the data, the first is {unknown[0]!r} (in the data are "
            f"{examples(free or self._slides)}){rule_that_joins(unknown, free) or self._hint(unknown, free)}"
        )

    @staticmethod
    def _hint(unknown: Sequence[str], free: Sequence[str]) -> str:
        if not begins_names(unknown, free):
            return ""
        return (
            "; these look like cases, as they begin the names of slides: write the shards with a column "
            "case, or with --case-from tcga for TCGA barcodes"
        )

    def _of(self, name: str) -> list[int]:
        if name in self._row_of:
            return [self._row_of[name]]
        slides = self._names.meant_by(name)
        if len(slides) > 1:
            raise SplitError(f"{name!r} could be any of the slides {slides}; give its full name")
        return [self._row_of[slide] for slide in slides]


def _of_folder(path: Path) -> dict[str, Sets]:
    """The folds of a folder of files, in the order of the numbers in their names."""
    files = [each for each in path.iterdir() if each.is_file() and not each.name.startswith(".")]
    # CLAM writes splits_0_bool.csv and splits_0_descriptor.csv beside splits_0.csv.
    chosen = [each for each in files if _CLAM.fullmatch(each.name)] or [
        each
        for each in files
        if each.suffix.lower() in _SUFFIXES and not each.stem.lower().endswith(("_bool", "_descriptor"))
    ]
    if not chosen and (parts := [each for each in path.iterdir() if each.is_dir() and any(each.iterdir())]):
        return _joined(sorted(parts, key=lambda each: _natural(each.name)))
    if not chosen:
        raise SplitError(f"{path}: expected files of splits, one per fold, got none ({', '.join(_SUFFIXES)})")
    set_of = {file: _SET_OF[file.stem.lower()] for file in chosen if file.stem.lower() in _SET_OF}
    if "train" in set_of.values() and len(set(set_of.values())) == len(chosen) > 1:
        return {"": {name: [] for name in SETS} | {name: _listed(file) for file, name in set_of.items()}}
    return _joined(sorted(chosen, key=lambda each: _natural(each.name)))


def _joined(parts: Sequence[Path]) -> dict[str, Sets]:
    """The folds in files or folders of one fold each."""
    folds: dict[str, Sets] = {}
    for part in parts:
        found = folds_in(part)
        if len(found) > 1:
            raise SplitError(f"{part} holds {len(found)} splits; in a folder, each file must be one fold")
        folds[part.name] = next(iter(found.values()))
    return folds


def _listed(path: Path) -> list[str]:
    """The slides or cases of a file that lists one set, with or without a header."""
    table = read_table(path, error=SplitError, row="slide", header_alone=True)
    column = _names(table)
    if column is None and table.width > 1:
        raise SplitError(
            f"{path}: expected a column slide, or one slide a line, got the header {table.columns}"
        )
    rows = table.rows if column is not None else table.without_header().rows
    return [cells[column or 0].strip() for _, cells in rows]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _of_table(table: Table) -> dict[str, Sets]:
    if not table.rows:
        raise ValueError("it has no rows")
    table = headed(table, known_names(SLIDE, CASE, _SET_COLUMN, _FOLD_COLUMN))
    lists = _lists(table)
    set_column, fold_column = _set_and_fold(table)
    if lists and set_column is None:
        return {"": _members(table, lists)}
    numbered = {
        index: match[1] for index, name in enumerate(table.columns) if (match := _numbered(name)) is not None
    }
    name_column = _names(table)
    missing = [] if set_column is not None or fold_column is not None or numbered else ["set"]
    if name_column is None:
        raise ValueError(
            f"it has no column {', '.join([*missing, 'slide'])} (its columns: {', '.join(table.columns)})"
        )
    if set_column is not None:
        return _by_set(table, name_column, set_column, fold_column)
    if numbered:
        return {
            f"fold {number}": next(iter(_by_set(table, name_column, index, None, gaps=True).values()))
            for index, number in sorted(numbered.items(), key=lambda each: int(each[1]))
        }
    if fold_column is not None:
        return _by_number(table, name_column, fold_column)
    raise ValueError(f"it has no column {', '.join(missing)} (its columns: {', '.join(table.columns)})")


def _numbered(name: str) -> re.Match[str] | None:
    return re.fullmatch(r"(?:fold|split)([0-9]+)", plain(name))


def _names(table: Table) -> int | None:
    """The column of slides, otherwise that of cases; `slide` itself comes before every other."""
    if table.columns.count("slide") == 1:
        return table.columns.index("slide")
    for kind in (SLIDE, CASE):
        if (found := find(table, Kind(kind.what, kind.names, kind.others), error=SplitError)) is not None:
            return found
    return None


def _set_and_fold(table: Table) -> tuple[int | None, int | None]:
    """The column that says the set, and the one that says the fold; `split` and `fold` can be either."""
    named = [find(table, kind, error=SplitError) for kind in (_SET_COLUMN, _FOLD_COLUMN)]
    words: list[int] = []
    numbers: list[int] = []
    for column in (index for index in named if index is not None):
        values = [cells[column].strip() for _, cells in table.rows]
        is_number = all(map(_FOLD.fullmatch, values))
        says_set = any(value.lower() in _SET_OF for value in values) or (column == named[0] and not is_number)
        (words if says_set or plain(table.columns[column]) == "set" else numbers).append(column)
    return next(iter(words), None), next(iter([*numbers, *words[1:]]), None)


def _lists(table: Table) -> dict[str, int]:
    """The columns that list the members of a set; none unless they hold a training set and another."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate(table.columns):
        match = _MEMBERS.fullmatch(plain(name))
        if match and match[1] in _SET_OF:
            found.setdefault(_SET_OF[match[1]], []).append(index)
    if "train" not in found or len(found) < 2:
        return {}
    for name, columns in found.items():
        if len(columns) > 1:
            raise ValueError(f"two columns are the {name} set: {[table.columns[index] for index in columns]}")
    return {name: columns[0] for name, columns in found.items()}


def _members(table: Table, lists: Mapping[str, int]) -> Sets:
    sets: Sets = {name: [] for name in SETS}
    marks = {cells[column].strip().lower() for _, cells in table.rows for column in lists.values()}
    if marks <= {*_TRUE, *_FALSE} and (names := _first_other(table, lists)) is not None:
        for _, cells in table.rows:
            for name, column in lists.items():
                if cells[column].strip().lower() in _TRUE:
                    sets[name].append(cells[names].strip())
        return sets
    for name, column in lists.items():
        cells_of = (cells[column].strip() for _, cells in table.rows)
        sets[name] = [cell for cell in cells_of if not is_missing(cell)]  # lists are of different lengths
    return sets


def _first_other(table: Table, lists: Mapping[str, int]) -> int | None:
    if (found := _names(table)) is not None:
        return found
    return next((index for index in range(table.width) if index not in lists.values()), None)


def _by_set(
    table: Table, name_column: int, set_column: int, fold_column: int | None, *, gaps: bool = False
) -> dict[str, Sets]:
    """The folds of a table in which each row says the set of a slide; with `gaps`, or that it is in none."""
    folds: dict[str, Sets] = {}
    for line, cells in table.rows:
        fold = "" if fold_column is None else _fold(cells[fold_column], line)
        sets = folds.setdefault(fold, {name: [] for name in SETS})
        name, value = cells[name_column].strip(), cells[set_column].strip()
        if gaps and is_missing(value):
            continue
        if (kind := _SET_OF.get(value.lower())) is None:
            raise ValueError(f"line {line}: set is {value!r}, not one of {', '.join(SETS)}")
        if not name:
            raise ValueError(f"line {line}: the {table.columns[name_column]} is missing")
        sets[kind].append(name)
    return {fold: folds[fold] for fold in sorted(folds, key=_natural)}


def _fold(cell: str, line: int) -> str:
    """The name of a fold; 1 and 1.0 are one."""
    if is_missing(cell):
        raise ValueError(f"line {line}: the fold is missing")
    number = re.sub(r"^([0-9]+)[.,]0+$", r"\1", cell.strip())
    return f"fold {number}"


def _by_number(table: Table, name_column: int, fold_column: int) -> dict[str, Sets]:
    """The folds of a table that says for each slide which fold tests it; the other folds train."""
    fold_of: list[tuple[str, int]] = []
    for line, cells in table.rows:
        name, value = cells[name_column].strip(), cells[fold_column].strip()
        if not (number := _FOLD.fullmatch(value)) or not name:
            raise ValueError(f"line {line}: expected a slide and the number of its fold, got {cells}")
        fold_of.append((name, int(number[1])))
    numbers = sorted({number for _, number in fold_of})
    if len(numbers) < 2:
        raise ValueError(f"every slide is of fold {numbers[0]}: expected at least two folds, or a column set")
    return {
        f"fold {number}": {
            "train": [name for name, fold in fold_of if fold != number],
            "validation": [],
            "test": [name for name, fold in fold_of if fold == number],
        }
        for number in numbers
    }


def _is_json(path: Path) -> bool:
    if path.suffix.lower() == ".json":
        return True
    with path.open("rb") as file:
        return file.read(16).lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


def _of_json(path: Path) -> dict[str, Sets]:
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise ValueError("it is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    return dict(_json_folds(files.parse_json(content)))


def _json_folds(content: Any) -> Iterator[tuple[str, Sets]]:
    if isinstance(content, list):
        for number, each in enumerate(content, 1):
            yield f"fold {number}", _json_sets(each)
        return
    for name in ("folds", "splits"):
        if isinstance(content.get(name), list | dict):
            yield from _json_folds(content[name])
            return
    in_sets = content and all(
        key.lower() in _SET_OF and isinstance(each, dict) and not _SET_OF.keys() & {k.lower() for k in each}
        for key, each in content.items()
    )
    if content and not in_sets and all(isinstance(each, dict) for each in content.values()):
        for name, each in sorted(content.items(), key=lambda fold: _natural(fold[0])):
            yield (f"fold {name}" if name.isdecimal() else name), _json_sets(each)
    elif content and all(isinstance(each, str) and each.lower() in _SET_OF for each in content.values()):
        sets: Sets = {name: [] for name in SETS}
        for slide, name in content.items():
            sets[_SET_OF[name.lower()]].append(slide.strip())
        yield "", sets
    else:
        yield "", _json_sets(content)


def _json_sets(content: dict[str, Any]) -> Sets:
    sets: Sets = {}
    for key, members in content.items():
        if (name := _SET_OF.get(key.lower())) is None:
            continue
        if name in sets:
            raise ValueError(f"two of its lists are the {name} set")
        if isinstance(members, dict) and not any(isinstance(each, list | dict) for each in members.values()):
            members = list(members)  # {slide: label}
        if not isinstance(members, list) or any(isinstance(member, list | dict) for member in members):
            raise ValueError(f"expected a list of slides as {key!r}, got {str(members)[:50]}")
        sets[name] = [str(member).strip() for member in members]
    if not sets:
        raise ValueError(f"it names none of {', '.join(SETS)} (its keys: {', '.join(list(content)[:9])})")
    return {name: sets.get(name, []) for name in SETS}
