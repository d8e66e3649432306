"""Features in CSV files as DSMIL writes them: one file per bag, one line per instance.

The first line numbers the features, `0,1,2,...`. It tells such a file from a table of labels, which may stand
beside it.

Dimensions: N instances of a bag, D features.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import csv

from data_prep.readers import damage
from data_prep.readers.fields import FEATURES
from mhimdist.errors import DataError

SIGN = b"0,1,2,"
"""How a file begins; fewer than four features are not recognised."""

_MOST_HEADER_BYTES = 2**20
_BLOCK_BYTES = 2**24


def read(path: Path, arrays: Collection[str] = ()) -> dict[Any, Any]:
    """Read the features of a bag, float32 N x D; the whole file is parsed.

    A value takes four bytes and at least two characters, so they need at most twice the memory of the file.

    Raises:
        DataError: the first line does not number the features, a line has another number of values, or a
            value is not a number.
    """
    with path.open("rb") as file:
        header = file.readline(_MOST_HEADER_BYTES).strip().split(b",")
    if header != [b"%d" % i for i in range(len(header))]:
        raise DataError(
            f"{path}: expected a first line that numbers the features, 0,1,2,..., got "
            f"{b','.join(header[:8]).decode(errors='replace')[:60]!r}; write such files with DSMIL's "
            "compute_feats.py, or save features as .npy"
        )
    names = [str(i) for i in range(len(header))]
    with damage.named(f"{path}: damaged, or not a table of numbers"):
        table = csv.read_csv(
            path,
            csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, skip_rows=1, column_names=names),
            csv.ParseOptions(quote_char=False),
            csv.ConvertOptions(
                column_types=dict.fromkeys(names, "float32"), null_values=[], strings_can_be_null=False
            ),
        )
    features_ND = np.empty((len(table), len(names)), np.float32)
    for i, column in enumerate(table.columns):
        features_ND[:, i] = column.to_numpy()
    return {next(iter(arrays), FEATURES[0]): features_ND}
