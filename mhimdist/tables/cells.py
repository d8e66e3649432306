"""What a cell of a table says: something, or nothing."""

import re

MISSING = frozenset(
    {
        *("", "na", "n/a", "n.a.", "n.a", "#na", "#n/a n/a", "<na>", "nan", "-nan", "none", "null", "nil"),
        *("-", "--", "'--", "–", "—", "nat", ".", "..", "...", "…", "?", "k.a.", "k.a", "n.d.", "n.d"),
        *("not available", "not applicable", "not reported"),
        *("[not available]", "[not applicable]", "[not evaluated]", "[unknown]"),
    }
)
"""How tables write that they do not know, in lower case: by hand, pandas, R, SAS, and the GDC."""

_ERROR_VALUES = re.compile(
    r"[#¡¿]+[^\W\d_][\w./]*[!?]"  # #REF!, #WERT!, #DIV/0!, #NOM?, #¡VALOR!
    r"|#[^\W\d_]{1,3}/[^\W\d_]{1,5}!?"  # #N/A, #N/D, #Н/Д
    r"|#nv|#yok|#hiányzik|#není_k_dispozici|#getting_data"
    r"|#+"  # a column that is too narrow
    r"|err:[0-9]{3}"  # LibreOffice
)
"""What Excel and LibreOffice write, in any language, if a formula has no value; in lower case."""


ZERO_WIDTH = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
"""Characters that no one sees: zero-width spaces and joiners, the soft hyphen, and the byte-order mark."""
_FORMULA = re.compile(r'\s*="([^"]*)"\s*')
"""How text exports write numbers that Excel must keep as text: ="0012"."""


def said(cell: str) -> str:
    """A cell; of a formula that is nothing but a text, the text."""
    formula = _FORMULA.fullmatch(cell)
    return formula[1] if formula else cell


def is_missing(cell: str) -> bool:
    """Whether a cell is empty, or holds a mark for a missing value or a spreadsheet's error, in any case."""
    words = " ".join(ZERO_WIDTH.sub("", cell).lower().split())
    mark = re.sub(r"(?<=[./]) +| +(?=/)", "", words)
    return mark in MISSING or _ERROR_VALUES.fullmatch(mark) is not None
