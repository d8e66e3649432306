"""The table of inputs as people have them, each with the right answer: run this file to print it.

All content is drawn from one seed, kind by kind, so a new kind changes no other.
"""

from collections.abc import Iterable

import numpy as np
import wild_folders
import wild_ids
import wild_labels
import wild_texts
from wild_inputs import Case

SEED = 13


def all_cases() -> list[Case]:
    """Every case of tables and features, always the same."""
    kinds = [*wild_texts.KINDS, *wild_labels.KINDS, *wild_ids.KINDS, *wild_folders.KINDS]
    return [case for number, kind in enumerate(kinds) for case in kind(np.random.default_rng([SEED, number]))]


CASES = all_cases()
