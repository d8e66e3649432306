"""`read_table`: the one way to read a table, whatever its format, encoding and delimiter."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from mhimdist.errors import DataError
from mhimdist.tables import parquet, sheets, text
from mhimdist.tables.cells import said
from mhimdist.tables.text import Line, Text

MAX_BYTES = 2**30
"""Most bytes of a table; a table of a million slides has about 100 MB."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small text begins that Git keeps in place of a large file."""

_OTHERS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
)


@dataclass(frozen=True)
class Table:
    """A table with every cell as text, as it is in the file.

    Attributes:
        path: the file.
        columns: names of the columns, without spaces around them; the first line that is not blank.
        rows: of each further line that is not blank, its number in the file and its cells, as many as there
            are columns. In Parquet, rows are numbered from 1.
        header_line: the number of the first line.
        delimiter: what divides the cells of a text; empty for a spreadsheet and for Parquet.
        comments: the lines above that begin with "#" and have as many cells.
    """

    path: Path
    columns: list[str]
    rows: list[Line]
    header_line: int = 1
    delimiter: str = ""
    comments: list[Line] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.columns) or (len(self.rows[0][1]) if self.rows else 0)

    def without_header(self) -> "Table":
        """The same lines, all of them rows, also those that begin with "#"; no column has a name."""
        first = (self.header_line, list(self.columns))
        return replace(self, columns=[], rows=[*self.comments, first, *self.rows], comments=[])


def read_table(
    path: Path, *, error: type[DataError] = DataError, row: str = "row", header_alone: bool = False
) -> Table:
    """Read a table: CSV, TSV or other delimited text, a spreadsheet (.xlsx, .xls, .ods), or Parquet.

    The content decides and not the suffix. A text may be in UTF-8, with or without a byte-order mark, in
    UTF-16 with one, or in Latin-1, which a `TableWarning` says; its delimiter is a comma, semicolon, tab
    or bar, or spaces, or what Excel's line `sep=` names. Lines above the header that begin with "#" are
    comments. If every row has a number more than the header has names, as R writes them, the first column
    has the name "". A workbook must have one sheet that is not empty.

    Args:
        path: the file.
        error: type of the error to raise.
        row: what a row is, for the message for a table without rows.
        header_alone: whether a table without rows will do.

    Raises:
        DataError: as `error`; the file does not exist or is no table, a line has too few or too many cells,
            or there are no rows.
    """
    try:
        if (num_bytes := path.stat().st_size) > MAX_BYTES:
            raise error(f"{path}: expected a table of at most {MAX_BYTES} bytes, got {num_bytes}")
        content = path.read_bytes()
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from None
    found = _text(path, content, error)
    lines = [(number, list(map(said, cells))) for number, cells in found.lines]
    if len(lines) < (1 if header_alone else 2):
        raise error(f"{path}: expected a header and at least one {row}, got {len(lines)} lines")
    (header_line, header), *rows = lines
    columns = [name.strip() for name in header]
    return Table(path, columns, rows, header_line, found.delimiter, found.comments)


def _text(path: Path, content: bytes, error: type[DataError]) -> Text:
    if content.startswith(b"PAR1"):
        return Text(parquet.lines_of(path, content, error))
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return Text(sheets.lines_of(path, content, error))
    if content.startswith(LFS_POINTER):
        raise error(f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    if other := next((name for magic, name in _OTHERS if content.startswith(magic)), None):
        raise error(f"{path} is {other}, not a table; save it as CSV, .xlsx or Parquet")
    if content.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"):
        raise error(f"{path} is HTML or XML, not a table; save it as CSV, .xlsx or Parquet")
    if re.match(rb"[\xef\xbb\xbf\s]*(\{\s*\"|\[\s*[{\[\"])", content):
        raise error(f"{path} is JSON, not a table; save it as CSV, .xlsx or Parquet")
    return text.text_of(path, content, error)
