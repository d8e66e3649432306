"""Whole-slide images, by OpenSlide: the only door to it.

All regions are rectangles in pixels of level 0.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mhimdist.errors import DataError

SUFFIXES = (
    *(".bif", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu"),
    ".zvi",
)
MAX_BLOCK = 2048
"""Longest edge of what is read of a level at once: a region of any size takes a few MB."""


@dataclass(frozen=True)
class Region:
    """A rectangle.

    Attributes:
        x, y: its upper left corner.
        width, height: its size.
    """

    x: float
    y: float
    width: float
    height: float


class Slide:
    """An open slide.

    Attributes:
        path: its file.
        size: width and height of level 0 in pixels.
        mpp: micrometres per pixel of level 0; None if the file does not say.
        power: magnification of the objective; None if the file does not say.
        downsamples: of each level, relative to level 0.
    """

    def __init__(self, path: Path, handle: Any) -> None:
        """Take a handle of OpenSlide."""
        self.path = path
        self._handle = handle
        self.size: tuple[int, int] = handle.dimensions
        self.downsamples: tuple[float, ...] = handle.level_downsamples
        self.mpp = _number(handle.properties.get("openslide.mpp-x"))
        self.power = _number(handle.properties.get("openslide.objective-power"))

    def read(self, region: Region, width: int, height: int) -> Image.Image:
        """A region, resized to `width` x `height` pixels, RGB; what lies outside of the slide is white.

        Raises:
            DataError: the file is damaged there.
        """
        scale_x, scale_y = region.width / width, region.height / height
        level = self._handle.get_best_level_for_downsample(min(scale_x, scale_y))
        downsample = self.downsamples[level]
        step_x, step_y = (max(1, int(MAX_BLOCK * downsample / scale)) for scale in (scale_x, scale_y))
        whole = Image.new("RGB", (width, height), "white")
        for top in range(0, height, step_y):
            for left in range(0, width, step_x):
                columns, rows = min(step_x, width - left), min(step_y, height - top)
                corner = (round(region.x + left * scale_x), round(region.y + top * scale_y))
                covered = (columns * scale_x / downsample, rows * scale_y / downsample)
                size = (max(1, math.ceil(covered[0])), max(1, math.ceil(covered[1])))
                block = self._block(corner, level, size)
                # Only what is covered counts: beyond the slide's margin a block is white.
                box = (0.0, 0.0, min(covered[0], size[0]), min(covered[1], size[1]))
                whole.paste(block.resize((columns, rows), Image.Resampling.BOX, box), (left, top))
        return whole

    def _block(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        import openslide

        try:
            block = self._handle.read_region(corner, level, size)
        except openslide.OpenSlideError as error:
            raise DataError(f"{self.path} is damaged at {corner} of level {level}: {error}") from None
        ground = Image.new("RGB", block.size, "white")
        ground.paste(block, mask=block.getchannel("A"))
        return ground


@contextmanager
def opened(path: Path) -> Iterator[Slide]:
    """Open a slide while the context lasts.

    Raises:
        DataError: OpenSlide is not installed, or cannot read the file.
    """
    try:
        import openslide
    except ImportError:
        raise DataError(
            f"{path} needs OpenSlide, which is not installed: pip install 'mhimdist[slides]', or leave out "
            "--slides"
        ) from None
    try:
        handle = openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise DataError(f"OpenSlide cannot read {path}: {error or type(error).__name__}") from None
    with handle:
        yield Slide(path, handle)


def slides_in(folder: Path) -> dict[str, list[Path]]:
    """The files of slides in a folder and below, by their names without the suffix.

    Raises:
        DataError: there is no such folder, or no slide in it.
    """
    return files_in(folder, SUFFIXES, "slide")


def files_in(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, list[Path]]:
    """The files with certain suffixes in a folder and below, by their names in lower case without the suffix.

    Args:
        folder: where to look.
        suffixes: with their dots, in lower case.
        what: what the files are, for messages.

    Raises:
        DataError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: expected one with a {what} file per slide")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path.is_file():
            found.setdefault(path.stem.lower(), []).append(path)
    if not found:
        raise DataError(f"{folder} holds no {what} file; expected {', '.join(suffixes)}")
    return found


def file_of(slide: str, files: Mapping[str, list[Path]]) -> Path | None:
    """The file of a slide, whose name may or may not have a suffix; None if there is none.

    Raises:
        DataError: several files have the slide's name.
    """
    name = slide.lower()
    paths = files.get(name) or files.get(name.rpartition(".")[0], [])
    if len(paths) > 1:
        raise DataError(f"slide {slide!r} has several files: {', '.join(map(str, paths))}; keep one")
    return paths[0] if paths else None


def _number(text: str | None) -> float | None:
    """A positive number that a slide's file states."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
