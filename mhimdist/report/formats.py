"""How values are written in reports and tables: digits that mean something, and one sign for "none".

Plain ASCII, since a job's log may be written in any encoding.
"""

import json
import math

NONE = "-"


def auc(value: float | None) -> str:
    """A metric in [0, 1], to three decimals."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.3f}"


def setting(value: object) -> str:
    """A configuration value: floats to three significant digits, of 1 - x just below 1.

    A momentum of 0.9999 and one of 0.9995 differ in what they lack to 1, and three plain digits would make
    both of them 1.
    """
    if value is None:
        return NONE
    if isinstance(value, str):
        return value
    if not isinstance(value, float):
        return json.dumps(value, default=str, ensure_ascii=False)
    if not math.isfinite(value) or value == int(value):
        return f"{value:g}"
    if 0.9 < value < 1:
        decimals = 2 - math.floor(math.log10(1 - value))
        return f"{value:.{decimals}f}".rstrip("0")
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}".replace("e-0", "e-")


def setting_pair(first: object, second: object) -> tuple[str, str]:
    """Two configuration values that differ, with as many digits as it takes to see that."""
    texts = setting(first), setting(second)
    return texts if texts[0] != texts[1] else (repr(first), repr(second))


def share(value: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * value:.0f}%"


def duration(seconds: float) -> str:
    """Wall-clock time with its two largest units."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def mib(num_bytes: float) -> str:
    """An amount of memory."""
    return f"{num_bytes / 2**20:,.0f} MiB"


def rounded(seconds: float) -> str:
    """Wall-clock time in whole seconds, for what is only about so long."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it should be."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def last_line(text: str) -> str:
    """What a traceback ends in, cut to a length that fits a table."""
    line = next(reversed(text.strip().splitlines()), "")
    return line if len(line) <= 200 else f"{line[:199]}…"
