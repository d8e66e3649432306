"""Sections and figures that depend on what the labels mean, a file per task; `interface` says what each has.

Those of classification are in `pages.results` and `pages.calibration`.
"""

from mhimdist.pages.tasks.finding import page_of
from mhimdist.pages.tasks.interface import JudgedNetwork, Networks, TaskPage

__all__ = ["JudgedNetwork", "Networks", "TaskPage", "page_of"]
