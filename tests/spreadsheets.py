"""Workbooks as Excel stores them, made without a library that writes them."""

import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

_FORMATS = "openxmlformats.org"
_PACKAGE = f"http://schemas.{_FORMATS}/package/2006"
_OFFICE = f"http://schemas.{_FORMATS}/officeDocument/2006/relationships"
_MAIN = f"http://schemas.{_FORMATS}/spreadsheetml/2006/main"
_KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"


def write_xlsx(path: Path | str, **sheets: list[list[object]]) -> None:
    """Write a workbook: numbers as numbers, text inline, None as no cell.

    Args:
        path: the file.
        sheets: the rows of each sheet by its name, of at most 26 columns.
    """
    numbers = range(1, len(sheets) + 1)
    part = '<Override PartName="{}" ContentType="{}+xml"/>'
    kinds = part.format("/xl/workbook.xml", f"{_KIND}.sheet.main") + "".join(
        part.format(f"/xl/worksheets/sheet{n}.xml", f"{_KIND}.worksheet") for n in numbers
    )
    rels = (
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    )
    listed = "".join(
        f'<sheet name="{name}" sheetId="{n}" r:id="rId{n}"/>' for n, name in enumerate(sheets, 1)
    )
    members = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">{rels}{kinds}</Types>',
        "_rels/.rels": _relations(("officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>{listed}</sheets>'
        "</workbook>",
        "xl/_rels/workbook.xml.rels": _relations(
            *(("worksheet", f"worksheets/sheet{n}.xml") for n in numbers)
        ),
    }
    for n, rows in enumerate(sheets.values(), 1):
        xml = "".join(f'<row r="{number}">{_row(number, row)}</row>' for number, row in enumerate(rows, 1))
        members[f"xl/worksheets/sheet{n}.xml"] = (
            f'<worksheet xmlns="{_MAIN}"><sheetData>{xml}</sheetData></worksheet>'
        )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{content}')


def _relations(*targets: tuple[str, str]) -> str:
    each = "".join(
        f'<Relationship Id="rId{n}" Type="{_OFFICE}/{kind}" Target="{target}"/>'
        for n, (kind, target) in enumerate(targets, 1)
    )
    return f'<Relationships xmlns="{_PACKAGE}/relationships">{each}</Relationships>'


def _row(number: int, cells: list[object]) -> str:
    return "".join(_cell(f"{chr(65 + column)}{number}", cell) for column, cell in enumerate(cells))


def _cell(place: str, cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return f'<c r="{place}" t="inlineStr"><is><t>{escape(cell)}</t></is></c>'
    return f'<c r="{place}"><v>{cell}</v></c>'
