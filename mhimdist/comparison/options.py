"""The options of a comparison."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from mhimdist.config.fields import Metavar, Positional
from mhimdist.config.options import Options
from mhimdist.config.protocols import Protocol


class ComparisonJob(Options):
    """Compare finished runs on the same test slides, with paired tests."""

    runs: Annotated[list[str], Positional("RUN")] = Field(
        min_length=1,
        description="folders of cross-validations, sweeps (their final runs), folds or predictions, or names "
        "below runs/ of MHIMDIST_HOME; folder::name takes one configuration of several",
    )
    out: Annotated[Path | None, Metavar("DIR")] = Field(
        None, description="folder that receives comparison.md and comparison.json; none: only print"
    )
    common: bool = Field(
        False, description="where test slides or data sets differ, compare the slides that all of them tested"
    )
    against: str | None = Field(
        None, description="compare all others with the configuration of this name; none: compare all pairs"
    )
    protocol: Protocol | None = Field(
        None,
        description="protocol to compare if a folder holds several; none: nested or strict, the first that "
        "it has",
    )
    level: float = Field(0.95, gt=0, lt=1, description="confidence level of intervals and of the verdict")
    num_resamples: int = Field(2000, ge=100, description="resamples of the bootstrap over cases")
    seed: int = Field(0, ge=0, description="seed of the resamples")

    @model_validator(mode="after")
    def _something_to_compare(self) -> Self:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError(f"expected each folder once, got {', '.join(self.runs)}")
        return self
