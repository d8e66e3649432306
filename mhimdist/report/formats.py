"""Formats of values in reports and tables: significant digits, and one sign for "none".

Plain ASCII, since a job's log may have any encoding.
"""

import json
import math

NONE = "-"


def auc(value: float | None) -> str:
    """A metric in [0, 1], to three decimals."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.3f}"


def setting(value: object) -> str:
    """A configuration value: a float to three significant digits; just below 1, to three of 1 - x.

    The momenta 0.9999 and 0.9995 differ in their distance to 1; three plain digits would turn both into 1.
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
    """Two different configuration values, with enough digits to show the difference."""
    texts = setting(first), setting(second)
    return texts if texts[0] != texts[1] else (repr(first), repr(second))


def share(value: float) -> str:
    """A share in [0, 1], in per cent."""
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
    """Wall-clock time in whole seconds, for approximate times."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def last_line(text: str) -> str:
    """The last line of a traceback, cut to 200 characters to fit a table."""
    line = next(reversed(text.strip().splitlines()), "")
    return line if len(line) <= 200 else f"{line[:199]}…"
