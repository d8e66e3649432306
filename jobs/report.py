#!/usr/bin/env python
"""Write a report, one HTML file, of a run, a cross-validation, the paper's tables, predictions or a sweep."""

from mhimdist.pages.options import ReportJob
from mhimdist.pages.write import run_report
from mhimdist.process import run


def main() -> None:
    run_report(ReportJob.from_command_line(about=__doc__))


if __name__ == "__main__":
    run(main)
