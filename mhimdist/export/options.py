"""The options of an export, as a command has them."""

from pathlib import Path

from pydantic import Field

from mhimdist.config.options import Options


class Export(Options):
    """Export the trained networks of a run for use without mhimdist."""

    run: Path = Field(
        description="folder of a finished fold, a cross-validation, or a sweep, for its final runs"
    )
    out: Path | None = Field(None, description="folder to write; none: export/ in the run's folder")
    member: str = Field(
        "all",
        description="networks to export where the run has several: all of the configuration, the best by "
        "validation score, or the folder name of one",
    )
    candidate: str | None = Field(
        None,
        description="name of a configuration, or the start of its digest, where the run holds several; none: "
        "the one with masking, under the strict protocol",
    )
    onnx: bool = Field(False, description="also write ONNX files, each compared with PyTorch")
