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


def is_missing(cell: str) -> bool:
    """Whether a cell is empty, or holds a mark for a missing value or a spreadsheet's error, in any case."""
    said = re.sub(r"(?<=[./]) +| +(?=/)", "", " ".join(cell.lower().split()))
    return said in MISSING or _ERROR_VALUES.fullmatch(said) is not None
