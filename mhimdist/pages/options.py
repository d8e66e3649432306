"""The options of a report."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mhimdist.config.fields import Metavar, Positional
from mhimdist.config.options import Options

REPORT_FILE = "report.html"


class ReportJob(Options):
    """Write a report of runs, cross-validations, the paper's tables, predictions or sweeps."""

    folders: Annotated[list[str], Positional("RUN")] = Field(
        min_length=1,
        description="folders of runs, cross-validations, the paper's tables, predictions or sweeps (their "
        "final runs), or names below runs/ of MHIMDIST_HOME",
    )
    out: Annotated[Path | None, Metavar("FILE")] = Field(
        None,
        description=f"file to write, for one folder; none: {REPORT_FILE} in the folder, or final.html in a "
        "sweep's",
    )
    temperature: bool = Field(
        False, description="show the calibration after temperature scaling, too, fitted on validation cases"
    )
    subgroups: tuple[str, ...] = Field(
        (), description="tables and columns to divide the test slides by, as labels.csv:scanner"
    )
    data: str | None = Field(
        None,
        description="shards that the runs were trained on, if their instances are labelled: show how well "
        "attention finds the positive ones",
    )
    risk_groups: int = Field(
        2,
        ge=2,
        le=5,
        description="of survival: groups of risk to compare, divided by the validation cases' quantiles; 2 "
        "is low and high risk, by their median",
    )
    pdf: Annotated[Path | None, Metavar("DIR")] = Field(
        None, description="folder that receives the figures as vector PDF, for a paper"
    )
