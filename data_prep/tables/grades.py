"""The order of grades, where their names leave no doubt about it."""

import re
from collections.abc import Collection, Iterable

from mhimdist.errors import LabelError

_VALUE = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_NUMBERED = re.compile(r"(?P<before>[^0-9]*?)[ _-]*(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<letter>[a-d]?)\+?")
_ROMAN = re.compile(r"(?P<before>|.*?[ _-]|grade|stage)(?P<number>i{1,3}|iv|vi{0,3}|0)(?P<letter>[a-d]?)")
_ROMAN_NUMBERS = {"0": 0, "i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6, "vii": 7, "viii": 8}
_SCALES = (
    ("none", "very low", "low", "intermediate", "high", "very high"),
    ("none", "very low", "low", "medium", "high", "very high"),
    ("none", "very low", "low", "moderate", "high", "very high"),
    ("none", "very low", "low", "middle", "high", "very high"),
    ("none", "minimal", "mild", "moderate", "marked", "severe", "very severe"),
    ("absent", "minimal", "mild", "moderate", "marked", "severe", "very severe"),
    ("normal", "minimal", "mild", "moderate", "marked", "severe", "very severe"),
    ("absent", "weak", "moderate", "strong"),
    ("negative", "weak", "moderate", "strong"),
    ("well", "moderate", "poor", "undifferentiated"),
    ("well", "moderately", "poorly", "undifferentiated"),
    ("well differentiated", "moderately differentiated", "poorly differentiated", "undifferentiated"),
    ("benign", "borderline", "malignant"),
    ("small", "medium", "large"),
    ("first", "second", "third", "fourth", "fifth"),
    ("one", "two", "three", "four", "five"),
)


def grades_in_order(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The grades in ascending order, if their names say it.

    Names say it if they are numbers, numbers behind the same word ("G1", "Grade 2", "T1a", "2+"), Roman
    numbers ("Stage IIa"), or words of one scale ("low", "intermediate", "high").

    Args:
        names: the grades in any order.
        where: where they are from, for the message.

    Raises:
        LabelError: there are fewer than two, or their order is not certain; --classes gives it.
    """
    found = sorted(set(names))
    if len(found) < 2:
        raise LabelError(f"{where}: expected two or more grades, got {found}; nothing can be learnt from one")
    if all(map(_VALUE.fullmatch, found)) and len(set(map(float, found))) == len(found):
        return tuple(sorted(found, key=float))
    for order in (_by_number(found, _NUMBERED), _by_number(found, _ROMAN), _by_scale(found)):
        if order is not None:
            return order
    raise LabelError(
        f"{where}: the order of the grades {', '.join(map(repr, found))} is not certain; give them from the "
        "lowest to the highest, as in --classes low,intermediate,high"
    )


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _by_number(names: Collection[str], form: re.Pattern[str]) -> tuple[str, ...] | None:
    """The order by the numbers in the names, if nothing else in them differs and no two are alike."""
    matches = {name: form.fullmatch(name.strip().casefold()) for name in names}
    keys: dict[str, tuple[float, str]] = {}
    before = set()
    for name, match in matches.items():
        if match is None:
            return None
        number = match["number"]
        keys[name] = float(_ROMAN_NUMBERS.get(number, 0) if form is _ROMAN else number), match["letter"]
        before.add(re.sub(r"[\W_]+", "", match["before"]))
    numbers = [number for number, _ in keys.values()]
    is_unclear = any(not letter and numbers.count(number) > 1 for number, letter in keys.values())
    if len(before) > 1 or len(set(keys.values())) < len(keys) or is_unclear:  # such as "1" beside "1a"
        return None
    return tuple(sorted(names, key=keys.__getitem__))


def _by_scale(names: Collection[str]) -> tuple[str, ...] | None:
    """The order of words that are all of one scale; of words in several scales, these agree on it."""
    plain = {_plain(name): name for name in names}
    if len(plain) < len(names):
        return None
    scales = [scale for scale in _SCALES if plain.keys() <= set(scale)]
    orders = {tuple(plain[word] for word in scale if word in plain) for scale in scales}
    return orders.pop() if len(orders) == 1 else None
