#!/usr/bin/env python3
"""Check everything that only a GPU can show, and measure what is calculated without one.

    make gpu-check                                              # in .venv
    python benchmarks/gpu_check/run.py [--only masks steps-abmil] [--budget 900]
    python benchmarks/gpu_check/run.py --device cpu             # small sizes, to try the check itself
    python benchmarks/gpu_check/run.py --table gpu_check_out/gpu_check.json

It needs a checkout and PyTorch, and no installation. Each part runs in a process of its own and within its
own time, all of them in less than 6 minutes. What the machine lacks, such as Ray, DALI, pytest or
compute-sanitizer, is left out by name. `gpu_check.json` is written anew whenever something was found.

The exit status is 0 if every part that could run has passed. Bars of speed do not count: another card than an
H100 may miss them.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu_check.bars import bars
from benchmarks.gpu_check.driver import BUDGET_S, Driver, Part
from benchmarks.gpu_check.report import markdown, summary

_PACKAGE = "benchmarks.gpu_check.parts."
PARTS = (
    Part("kernels", f"{_PACKAGE}tests", 150, "kernels", needs_gpu=True, beside=True),
    Part("tests", f"{_PACKAGE}tests", 150, "marked", needs_gpu=True, beside=True),
    Part("environment", f"{_PACKAGE}environment", 40),
    Part("masks", f"{_PACKAGE}masks", 50),
    Part("steps-abmil", f"{_PACKAGE}steps", 70, "abmil"),
    Part("steps-dsmil", f"{_PACKAGE}steps", 60, "dsmil"),
    Part("steps-transmil", f"{_PACKAGE}steps", 90, "transmil"),
    Part("loading", f"{_PACKAGE}loading", 60),
    Part("races", f"{_PACKAGE}races", 40),
    Part("workers", f"{_PACKAGE}workers", 40),
    Part("compiled", f"{_PACKAGE}compiled", 90),
    Part("baselines", f"{_PACKAGE}baselines", 40),
    Part("sanitizer", f"{_PACKAGE}sanitizer", 75, needs_gpu=True),
)


def main() -> int:
    """Command line."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_check_out"), help="folder of the result (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_S,
        metavar="SECONDS",
        help="for all parts together; more of it stretches each part's limit (default: %(default)g)",
    )
    parser.add_argument("--table", type=Path, metavar="JSON", help="print an earlier result as Markdown")
    options = parser.parse_args()
    if options.table:
        print(markdown(json.loads(options.table.read_text(encoding="utf-8"))), end="")
        return 0
    parts = [part for part in PARTS if not options.only or part.name in options.only]
    driver = Driver(parts, device=options.device, out=options.out, budget_s=options.budget)
    passed = driver.run()
    driver.result["bars"] = bars(driver.result)
    driver.save()
    print(summary(driver.result))
    print(f"\nDetails: {options.out / 'gpu_check.json'} and {options.out / 'gpu_check.log'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
