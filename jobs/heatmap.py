#!/usr/bin/env python
"""Draw where a model looks: attention and probabilities of patches on slides, and GeoJSON for QuPath."""

from mhimdist.heatmaps.options import HeatMaps
from mhimdist.heatmaps.run import heat_maps
from mhimdist.process import run


def main() -> None:
    heat_maps(HeatMaps.from_command_line(about=__doc__))


if __name__ == "__main__":
    run(main)
