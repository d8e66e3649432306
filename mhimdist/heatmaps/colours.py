"""Colours of maps and classes, which colour-blind readers can tell apart."""

import matplotlib

# Perceptually uniform: equal steps of a value look equal, in grey print, too.
ATTENTION, PROBABILITY = "viridis", "cividis"

# Okabe and Ito's palette, the negative class first and quiet.
_CLASSES = ("#56B4E9", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#0072B2", "#F0E442")


def rgb_of_class(index: int) -> list[int]:
    """Red, green and blue of a class, each from 0 to 255; the colours repeat after seven classes."""
    return [int(_CLASSES[index % len(_CLASSES)][at : at + 2], 16) for at in (1, 3, 5)]


def rgb_of_share(share: float) -> list[int]:
    """Red, green and blue of a value in [0, 1] on the map of attention."""
    return [round(255 * part) for part in matplotlib.colormaps[ATTENTION](share)[:3]]
