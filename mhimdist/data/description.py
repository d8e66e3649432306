"""What a report or a model card says of a data set."""

from typing import Any

import numpy as np

from mhimdist.data.bags import BagSource
from mhimdist.data.stored import StoredBags


def describe(bags: BagSource) -> dict[str, Any]:
    """Name, origin and sizes of a data set, in JSON types.

    Args:
        bags: the data set; name and origin are None unless they are in its manifest.
    """
    named: dict[str, Any] = dict.fromkeys(("name", "synthetic", "description"))
    if isinstance(bags, StoredBags):
        named = {"name": bags.name, "synthetic": bags.synthetic, "description": bags.description}
    per_class = np.bincount(bags.labels_N, minlength=len(bags.classes))
    return {
        **named,
        "bag_of": bags.bag_of if isinstance(bags, StoredBags) else "slide",
        "digest": bags.digest,
        "num_bags": len(bags.keys),
        "num_cases": len(set(bags.cases)),
        "bags_per_class": dict(zip(bags.classes, per_class.tolist(), strict=True)),
        "instances": {
            "lowest": int(bags.sizes_N.min()),
            "median": float(np.median(bags.sizes_N)),
            "highest": int(bags.sizes_N.max()),
        },
    }
