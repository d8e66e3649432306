#!/usr/bin/env python3
"""Memory of an AB-MIL training step: ours against the authors' way.

    python benchmarks/memory.py --instances 18000

Each step runs in its own process. The result is the peak of resident memory during three steps, above what
the process held before the first one: the imports, the networks and the bag.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

KINDS = ("naive", "ours float32", "ours bfloat16")


def peak_mb(kind: str, instances: int) -> float:
    """Peak memory of this process during three steps, above what it held before them, in MB."""
    import psutil
    import torch

    from benchmarks.peers import NaiveStep
    from benchmarks.train_step import OurStep
    from mhimdist.config.presets import preset
    from mhimdist.data.bags import PackedBags

    torch.set_num_threads(1)
    dtype = torch.bfloat16 if kind.endswith("bfloat16") else torch.float32
    # Filled in place: a copy in another dtype would count as a peak before the step.
    features_ND = torch.empty(instances, 1024, dtype=dtype).uniform_()
    step: Callable[[], object]
    if kind == "naive":
        naive = NaiveStep(preset("c16", "abmil"), num_features=1024, num_classes=2)
        step = partial(naive, features_ND, torch.tensor([1]))
    else:
        ours = OurStep("abmil", num_features=1024, num_classes=2, dtype=kind.split()[1])
        offsets_B1, label_1, id_1 = torch.tensor([0, instances]), torch.tensor([1]), torch.tensor([7])
        step = partial(ours, PackedBags(features_ND, offsets_B1, label_1, id_1, ("bag",)))
    before = psutil.Process().memory_info().rss
    for _ in range(3):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / 1e6


def measure(instances: int) -> dict[str, Any]:
    """Measure every kind in its own process; returns the keys that `--json` prints."""
    found = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--instances", str(instances), "--only", kind]
        found[kind] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "instances": instances,
        "peak_mb": {kind: round(mb, 1) for kind, mb in found.items()},
        "share_of_naive": {kind: round(mb / found["naive"], 2) for kind, mb in found.items()},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--instances", type=int, default=18000, help="of the bag (default: 18000)")
    parser.add_argument("--only", choices=KINDS, help="measure one in this process and print only its MB")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    if options.only:
        print(peak_mb(options.only, options.instances))
        return
    result = measure(options.instances)
    if options.json:
        print(json.dumps(result))
        return
    print(f"AB-MIL step, {options.instances:,} x 1,024, peak above imports, networks and bag")
    for kind, mb in result["peak_mb"].items():
        print(f"  {kind:<15} {mb:>8.1f} MB   {result['share_of_naive'][kind]:>5.2f} of the naive step's")


if __name__ == "__main__":
    main()
