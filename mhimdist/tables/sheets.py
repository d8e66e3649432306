"""Spreadsheets (.xlsx, .xls, .ods): the one sheet that holds a table, and its cells as text."""

import io
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

from mhimdist.errors import DataError
from mhimdist.tables.text import Line

MAX_CELLS = 20_000_000
"""Most cells of a sheet, empty ones included: the reader holds all of them up to the last that is used."""
MAX_UNPACKED_BYTES = 2**30
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""How files of Excel before 2007 begin, and files of any Excel with a password."""
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_WAY_OUT = "save it as .xlsx without a password, or as CSV"
_REFERENCE = re.compile(rb'<c\b[^>]*\br="([A-Z]{1,3})([0-9]{1,7})"')


def lines_of(path: Path, content: bytes, error: type[DataError]) -> list[Line]:
    """The rows of a workbook's one sheet that is not empty, without blank rows.

    Whole numbers are written without a decimal point, dates as the day.

    Args:
        path: names the file in messages.
        content: its bytes.
        error: type of the error to raise.

    Raises:
        DataError: as `error`; it is no spreadsheet, is far larger than its bytes, or more than one of its
            sheets holds cells.
    """
    import pandas  # heavy, and only spreadsheets need it
    from python_calamine import CalamineError

    _refuse_bomb(path, content, error)
    if content.startswith(OLE) and _ENCRYPTED in content:
        raise error(f"{path} is protected by a password; {_WAY_OUT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames = pandas.read_excel(
                io.BytesIO(content),
                sheet_name=None,
                header=None,
                engine="calamine",
                dtype=object,
                keep_default_na=False,
                na_filter=False,
            )
    except (CalamineError, ValueError, OSError, LookupError, zipfile.BadZipFile) as problem:
        why = f"; it may be protected by a password or in an old format; {_WAY_OUT}"
        raise error(
            f"{path} cannot be read as a spreadsheet: {problem}{why if content.startswith(OLE) else ''}"
        ) from None
    sheets = {str(name): _lines(frame) for name, frame in frames.items()}
    filled = [name for name, lines in sheets.items() if lines]
    if len(filled) > 1:
        raise error(
            f"{path}: expected one sheet that is not empty, got {len(filled)}: "
            f"{', '.join(map(repr, filled))}; save the one that counts as a file of its own"
        )
    return sheets[filled[0]] if filled else []


def _lines(frame: Any) -> list[Line]:
    rows = [[_text(cell) for cell in row] for row in frame.itertuples(index=False, name=None)]
    used = [column for column in range(frame.shape[1]) if any(row[column].strip() for row in rows)]
    # Formatted but empty columns around the table are no columns.
    first, last = (used[0], used[-1] + 1) if used else (0, 0)
    return [
        (number, row[first:last]) for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)
    ]


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).removesuffix(" 00:00:00")


def _refuse_bomb(path: Path, content: bytes, error: type[DataError]) -> None:
    """Refuse a zip that unpacks to far more than a table, or a sheet with a cell far from the others."""
    if not content.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if (total := sum(member.file_size for member in members)) > MAX_UNPACKED_BYTES:
                raise error(
                    f"{path}: refused, it claims {total} bytes unpacked, more than {MAX_UNPACKED_BYTES}"
                )
            for member in members:
                if member.filename.startswith("xl/worksheets/") and member.filename.endswith(".xml"):
                    num_rows, num_columns = _extent(archive.read(member))
                    if num_rows * num_columns > MAX_CELLS:
                        raise error(
                            f"{path}: refused, {member.filename} reaches to row {num_rows} and column "
                            f"{num_columns}, more than {MAX_CELLS} cells"
                        )
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError, OSError) as problem:
        raise error(f"{path} cannot be read as a spreadsheet: {problem}") from None


def _extent(sheet: bytes) -> tuple[int, int]:
    """The last row and the last column that a worksheet's XML names a cell in."""
    rows, columns = 0, 0
    for letters, number in _REFERENCE.findall(sheet):
        column = 0
        for letter in letters:
            column = 26 * column + letter - 64
        rows, columns = max(rows, int(number)), max(columns, column)
    return rows, columns
