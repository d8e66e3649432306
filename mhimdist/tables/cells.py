"""What a cell of a table says: something, or nothing."""

MISSING = frozenset(
    {
        *("", "na", "n/a", "n.a.", "#na", "#n/a", "#n/a n/a", "<na>", "nan", "-nan", "none", "null", "nil"),
        *("-", "--", "'--", "–", "—", "nat", "#null!", "#ref!", "#value!", "#name?", "#div/0!"),
        *(".", "?", "not available", "not applicable", "not reported"),
        *("[not available]", "[not applicable]", "[not evaluated]", "[unknown]"),
    }
)
"""How tables write that they do not know, in lower case: by hand, pandas, R, SAS, Excel, and the GDC."""


def is_missing(cell: str) -> bool:
    """Whether a cell is empty, or holds one of the usual marks for a missing value, in any case."""
    return cell.strip().lower() in MISSING
