"""Sections of a page that depend on what the labels mean, from the plain arrays in `bags`, a file per task.

`SECTIONS` finds them by the task's name. Those of classification are in `pages.results` and
`pages.calibration`.
"""

from collections.abc import Callable, Mapping

from mhimdist.pages.tasks.multilabel import multilabel_sections
from mhimdist.pages.tasks.ordinal import ordinal_sections
from mhimdist.pages.tasks.regression import regression_sections
from mhimdist.pages.tasks.survival import survival_sections
from mhimdist.report.blocks import Section

SECTIONS: Mapping[str, Callable[..., list[Section]]] = {
    "multilabel": multilabel_sections,
    "ordinal": ordinal_sections,
    "regression": regression_sections,
    "survival": survival_sections,
}

__all__ = ["SECTIONS"]
