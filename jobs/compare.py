#!/usr/bin/env python
"""Compare finished runs on the same test slides: paired tests, settings that differ, a sentence to quote."""

from mhimdist.comparison.compare import run_comparison
from mhimdist.comparison.options import ComparisonJob
from mhimdist.process import run


def main() -> None:
    run_comparison(ComparisonJob.from_command_line(about=__doc__))


if __name__ == "__main__":
    run(main)
