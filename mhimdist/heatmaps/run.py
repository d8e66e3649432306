"""Heat maps of many slides, in one process or several; a bad slide is named, and the others go on."""

import multiprocessing
import os
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from mhimdist import terminal
from mhimdist.data.format import escape_key
from mhimdist.errors import ConfigError, DataError
from mhimdist.files import full_disk
from mhimdist.foreign_text import say
from mhimdist.heatmaps import annotations, mask_picture, patches, picture, qupath, scores
from mhimdist.heatmaps.annotations import Outline
from mhimdist.heatmaps.options import HeatMaps
from mhimdist.heatmaps.places import places_of
from mhimdist.heatmaps.scores import Scores
from mhimdist.heatmaps.slides import Region, Slide, file_of, files_in, opened, slides_in
from mhimdist.process import Stopping

if TYPE_CHECKING:
    from mhimdist.heatmaps.masks import Masks

MAX_NAMED = 20
SLIDES_PER_PROCESS = 4
"""Fewest slides that are worth a process: it takes a second or two to start."""
_MARGIN, _LONGEST = 0.03, 4.0


def heat_maps(job: HeatMaps) -> Path:
    """Draw maps of attention and of patches' probabilities.

    `heatmap.png`, `patches.geojson` for QuPath, `top_patches.csv`, with slides `top_patches.png`, and with a
    run `masks.png` go to a folder per slide, named as in `scores/`. Each slide prints a line, and so
    does the end.

    Args:
        job: what to draw; its fields are the options of `jobs/heatmap.py`.

    Returns:
        The folder with a folder per slide.

    Raises:
        ConfigError: a class is unknown.
        CheckpointError: `run` has no masks, or no checkpoint of the end of an epoch.
        DataError: there are no scores, or some slides could not be drawn; the message names each with the
            reason, and the others are drawn.
        PreemptedError: SIGTERM ended it; the slide at work is not finished, and the same command draws all.

    Example:
        >>> job = mh.HeatMaps(predictions=["runs/predict"], slides="slides/")
        >>> mh.heat_maps(job)  # doctest: +SKIP
    """
    keys = _chosen(_found(job), job)
    out = job.out or _default_out(job.predictions[0])
    failed: dict[str, str] = {}
    start = time.monotonic()
    with (
        Stopping(f"{out} is not finished; the same command draws it again"),
        closing(_outcomes(job, keys, out)) as outcomes,
    ):
        for number, (key, said, is_drawn) in enumerate(outcomes, start=1):
            if not is_drawn:
                failed[key] = said
                said = f"failed: {said}"
            left_s = (time.monotonic() - start) / number * (len(keys) - number)
            left = f" | about {left_s:.0f} s left" if number < len(keys) else ""
            if not is_drawn or not terminal.is_quiet():
                say(f"[{number:{len(str(len(keys)))}}/{len(keys)}] {said}{left}")
    if failed:
        raise DataError(_failures(failed, len(keys), out))
    say(f"heat maps: {out}, a folder per slide")
    return out


Outcome = tuple[str, str, bool]
"""A slide's key, its folder or why it has no map, and whether it has one."""


def _outcomes(job: HeatMaps, keys: Sequence[str], out: Path) -> Generator[Outcome]:
    """Draw the slides, in this process or in several; the order is theirs, or that in which they end."""
    cores = len(os.sched_getaffinity(0))
    workers = min(job.workers or max(1, min(cores, len(keys) // SLIDES_PER_PROCESS)), len(keys))
    if workers == 1:
        artist = _Artist(job, out)
        yield from map(artist.draw, keys)
        return
    context = multiprocessing.get_context("spawn")  # torch, which masks need, does not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(job, out)) as pool:
        try:
            for future in as_completed([pool.submit(_in_process, key) for key in keys]):
                yield future.result()
        except BrokenProcessPool:
            raise DataError(
                f"a process that drew slides was killed, perhaps for lack of memory; give --workers below "
                f"{workers}"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_artist: "_Artist | None" = None  # of a process that draws


def _begin(job: HeatMaps, out: Path) -> None:
    global _artist
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's own process answers Ctrl-C
    _artist = _Artist(job, out)


def _in_process(key: str) -> Outcome:
    assert _artist is not None, "a process begins before it draws"
    return _artist.draw(key)


class _Artist:
    """Draws slides of a job, one at a time."""

    def __init__(self, job: HeatMaps, out: Path) -> None:
        self._job, self._out = job, out
        names = job.names or _names(job.predictions)
        self._predictions = dict(zip(names, _found(job), strict=True))
        self._materials = _Materials(
            slides_in(job.slides) if job.slides else {},
            files_in(job.annotations, annotations.SUFFIXES, "annotation") if job.annotations else {},
            _masks(job),
        )

    def draw(self, key: str) -> Outcome:
        """Draw a slide; a bad one is told, and does not raise."""
        try:
            return key, str(_draw(self._job, key, self._predictions, self._materials, self._out)), True
        except (DataError, OSError) as error:
            return key, " ".join(str(error).split()), False


def _found(job: HeatMaps) -> list[dict[str, Path]]:
    return [_files(path) for path in job.predictions]


@dataclass(frozen=True)
class _Materials:
    """The files of slides and of annotations, by name, and the masks of a run."""

    slides: Mapping[str, list[Path]]
    annotations: Mapping[str, list[Path]]
    masks: "Masks | None"


def _masks(job: HeatMaps) -> "Masks | None":
    """The masks of the run, if one is given; only they need torch, which takes seconds to import."""
    if job.run is None or job.data is None:
        return None
    from mhimdist.data.opening import open_bags
    from mhimdist.heatmaps.masks import Masks, features_of

    return Masks(job.run, open_bags(job.data, None, features_of(job.run)))


def _files(path: Path) -> dict[str, Path]:
    """The files of scores of a prediction, by key."""
    if path.is_file():
        return {path.stem: path}
    if not path.exists():
        raise DataError(f"no predictions at {path}: expected the --out of `mhimdist predict --scores`")
    folder = path if path.name == scores.FOLDER else path / scores.FOLDER
    files = {file.stem: file for file in sorted(folder.glob("*.parquet")) if not file.name.startswith(".")}
    if not files:
        raise DataError(f"{path} holds no {scores.FOLDER}/*.parquet: predict with --scores")
    return files


def _names(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """The shortest ends of the paths that differ."""
    parts = [
        path.absolute().with_suffix("").parts if path.is_file() else path.absolute().parts for path in paths
    ]
    for length in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(each[-length:]) for each in parts)
        if len(set(names)) == len(names):
            return names
    raise DataError(f"{paths[0]} is given more than once; expected different predictions")


def _default_out(first: Path) -> Path:
    folder = first.parent if first.is_file() else first
    return (folder.parent if folder.name == scores.FOLDER else folder) / "heatmaps"


def _chosen(found: list[dict[str, Path]], job: HeatMaps) -> list[str]:
    keys = list(dict.fromkeys(key for files in found for key in files))
    if not job.only:
        return keys
    wanted = [escape_key(slide) for slide in job.only]
    missing = [slide for slide, key in zip(job.only, wanted, strict=True) if key not in keys]
    if missing:
        raise DataError(
            f"{job.predictions[0]} has no scores of slide {missing[0]!r}; it has {len(keys)} others"
        )
    return wanted


def _draw(
    job: HeatMaps, key: str, predictions: Mapping[str, dict[str, Path]], materials: _Materials, out: Path
) -> Path:
    """Draw one slide; returns its folder."""
    missing = [name for name, files in predictions.items() if key not in files]
    if missing:
        raise DataError(f"{', '.join(missing)} has no scores of it")
    read = {name: Scores.read(files[key]) for name, files in predictions.items()}
    slide_name = next(iter(read.values())).about.slide
    # What a file says, and not how it is called, decides where its maps go; no name leads out of the folder.
    folder = out / escape_key(slide_name)
    folder.mkdir(parents=True, exist_ok=True)
    if job.top:
        patches.write_table(folder / "top_patches.csv", list(read.items()), job.top)
    with ExitStack() as stack:
        slide = _slide(stack, slide_name, materials.slides)
        places = {
            name: places_of(each, slide, mpp=job.mpp, edge=job.patch_edge) for name, each in read.items()
        }
        rows = [picture.Row(name, each, places[name]) for name, each in read.items()]
        outlines, notes = _outlines(slide_name, rows, materials.annotations)
        view = _view(rows, slide, outlines, crop=job.crop)
        sheet = picture.Sheet(
            rows=rows,
            classes=_classes(job, read),
            view=view,
            thumbnail=(lambda width, height: slide.read(view, width, height)) if slide else None,
            outlines=outlines,
            notes=notes,
            in_one=job.in_one,
            width_px=job.width,
            dpi=job.dpi,
        )
        _save(picture.compose(sheet), folder / "heatmap.png", job.dpi)
        if slide and job.top:
            shown = [(row.name, row.scores, row.places) for row in rows]
            patches.draw(folder / "top_patches.png", slide, shown, job.top, job.dpi)
        if materials.masks:
            first = rows[0]
            hidden = materials.masks.of(slide_name, first.scores.num_patches)
            figure = mask_picture.draw(
                hidden, slide_name, first.places, view, width_px=job.width, dpi=job.dpi
            )
            _save(figure, folder / "masks.png", job.dpi)
    if job.geojson:
        for row in rows:
            several = f"-{quote(row.name, safe='')}" if len(rows) > 1 else ""
            path = folder / f"patches{several}.geojson"
            qupath.write(path, row.scores, row.places, model=row.name, min_percentile=job.min_percentile)
    return folder


def _slide(stack: ExitStack, name: str, slides: Mapping[str, list[Path]]) -> Slide | None:
    """Open the slide until the stack ends; None if no slides are given."""
    if not slides:
        return None
    path = file_of(name, slides)
    if path is None:
        raise DataError(
            f"slide {name!r} has no file of its name among the slides; leave out --slides, or add it"
        )
    return stack.enter_context(opened(path))


def _outlines(
    name: str, rows: list[picture.Row], files: Mapping[str, list[Path]]
) -> tuple[list[Outline], list[str]]:
    """The outlines of a slide, and what to say about them."""
    if not files:
        return [], []
    path = file_of(name, files)
    if path is None:
        return [], ["no annotation file"]
    if rows[0].places.unit != "px":
        return [], ["annotations are not drawn: they are in pixels; give --mpp"]
    outlines = annotations.read(path)
    return outlines, [] if outlines else [f"{path.name} holds no outline"]


def _view(rows: list[picture.Row], slide: Slide | None, outlines: list[Outline], *, crop: bool) -> Region:
    """What the maps show: the slide, or all patches, and on a clean canvas the outlines, with a margin."""
    if slide is not None and not crop:
        return Region(0, 0, *slide.size)
    units = {row.places.unit for row in rows}
    if len(units) > 1:
        raise DataError("one prediction has coordinates in µm and another in pixels: give --mpp or --slides")
    extents = [row.places.extent for row in rows]
    corners = [np.array([[e.x, e.y], [e.x + e.width, e.y + e.height]]) for e in extents]
    points_P2 = np.concatenate([*corners, *([] if crop else [outline.points_P2 for outline in outlines])])
    low_2, high_2 = points_P2.min(0), points_P2.max(0)
    size_2 = high_2 - low_2
    # A long row of patches gets room, so that its map is no line.
    wide_2 = np.maximum(size_2, size_2.max() / _LONGEST) + 2 * _MARGIN * size_2.max()
    return Region(*((low_2 + high_2 - wide_2) / 2), *wide_2)


def _classes(job: HeatMaps, read: Mapping[str, Scores]) -> list[str]:
    """The classes whose probability is drawn: those asked for, else those predicted."""
    known = list(dict.fromkeys(name for each in read.values() for name in each.about.classes))
    unknown = [name for name in job.classes if name not in known]
    if unknown:
        raise ConfigError(f"classes: no class is named {unknown[0]!r}; expected some of {', '.join(known)}")
    predicted = [each.about.predicted for each in read.values()]
    return list(job.classes) or list(dict.fromkeys(name for name in predicted if name is not None))


def _save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a picture whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with full_disk(path):
            figure.savefig(part, dpi=dpi, format="png")
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _failures(failed: Mapping[str, str], total: int, out: Path) -> str:
    """The list of slides without a map, for the error that ends the command."""
    listed = [f"{key} ({reason})" for key, reason in list(failed.items())[:MAX_NAMED]]
    more = f", and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
    return f"{len(failed)} of {total} slides have no map; the others are in {out}: {', '.join(listed)}{more}"
