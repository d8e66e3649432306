"""The options of heat maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from mhimdist.config.options import Options


class HeatMaps(Options):
    """Draw where models look on slides: attention and probabilities of patches.

    Raises:
        ConfigError: `from_command_line` got a value that is out of range, or an unknown option.
    """

    FIRST: ClassVar[tuple[str, ...]] = (
        *("predictions", "out", "slides", "only", "annotations", "classes", "top", "crop", "geojson"),
        "workers",
    )
    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "What to draw": ("predictions", "names", "only", "classes", "out"),
        "Slides": ("slides", "annotations", "mpp", "patch_edge"),
        "Picture": ("top", "width", "dpi", "in_one", "crop"),
        "QuPath": ("geojson", "min_percentile"),
        "Masks of a run": ("run", "data"),
        "Resources": ("workers",),
    }

    predictions: tuple[Path, ...] = Field(
        min_length=1,
        description="folders that predict wrote with --scores, or single files of scores, one for "
        "each row of the picture; more than one as a,b",
    )
    out: Path | None = Field(
        None, description="folder to write, with a folder per slide; none: heatmaps/ in the first prediction"
    )
    names: tuple[str, ...] = Field((), description="names of the predictions; none: those of their folders")
    only: tuple[str, ...] = Field((), description="draw only these slides; none: all")
    slides: Path | None = Field(
        None, description="folder of the slides (.svs, .tif, .ndpi, ...), found by name; none: a clean canvas"
    )
    annotations: Path | None = Field(
        None, description="folder of outlines to draw in, found by name: ASAP's .xml, or .geojson"
    )
    classes: tuple[str, ...] = Field(
        (), description="draw the probability of these classes; none: of the predicted class"
    )
    top: int = Field(
        8, ge=0, le=100, description="patches with the highest and lowest scores to list; 0: none"
    )
    width: int = Field(2400, ge=1500, le=20_000, description="width of a picture in pixels")
    dpi: int = Field(200, ge=72, le=1200, description="pixels per inch: more makes lines and text larger")
    run: Path | None = Field(
        None,
        description="folder of a run that still has checkpoints: draw what its masks hide at the start of "
        "epochs, too; needs --data",
    )
    data: Path | None = Field(None, description="folder of the shards that --run trains on")
    in_one: bool = Field(
        False,
        description="draw one map per class in place of several, in the style of the paper's Figure 4: "
        "attention makes a patch bright, probability makes it cyan",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="slides drawn at a time, each by a process; none: one per core if there are many slides",
    )
    crop: bool = Field(False, description="show only the part of the slide that has patches")
    mpp: float | None = Field(
        None, gt=0, description="micrometres per pixel of level 0; none: what the slide says"
    )
    patch_edge: float | None = Field(
        None,
        gt=0,
        description="edge of a patch in pixels of level 0; none: from scores, slide or coordinates",
    )
    geojson: bool = Field(True, description="write the patches for QuPath, too")
    min_percentile: float = Field(
        0.0, ge=0, lt=100, description="leave out of the GeoJSON what is below this percentile of attention"
    )

    @model_validator(mode="after")
    def _a_name_each(self) -> Self:
        if self.names and len(self.names) != len(self.predictions):
            raise ValueError(
                f"expected a name for each of {len(self.predictions)} predictions, got {len(self.names)}"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"expected different names, got {', '.join(self.names)}")
        return self

    @model_validator(mode="after")
    def _run_with_data(self) -> Self:
        if (self.run is None) != (self.data is None):
            raise ValueError(f"expected run and data together, got only {'data' if self.data else 'run'}")
        return self
