"""The table of inputs as people have them, each with the right answer.

`PYTHONPATH=.:tests python tests/data_prep/wild/wild_cases.py` prints it: kind, case and answer, in columns.
All content is drawn from one seed, kind by kind, so a new kind changes no other.
"""

import numpy as np
import wild_exports
import wild_folders
import wild_ids
import wild_labels
import wild_texts
from wild_checkpoints import CHECKPOINTS
from wild_inputs import Case
from wild_splits import SPLITS

SEED = 13


def all_cases() -> list[Case]:
    """Every case of tables and features, always the same."""
    kinds = [*wild_texts.KINDS, *wild_labels.KINDS, *wild_ids.KINDS, *wild_folders.KINDS, *wild_exports.KINDS]
    return [case for number, kind in enumerate(kinds) for case in kind(np.random.default_rng([SEED, number]))]


CASES = all_cases()

if __name__ == "__main__":
    for each in (*CASES, *SPLITS, *CHECKPOINTS):
        print(each.kind, each.name, each, sep="\t")
