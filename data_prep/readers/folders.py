"""Finding the features of slides in a folder that CLAM, TRIDENT, STAMP, torchmil or others laid out."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.readers import npy, tar, torchmil
from data_prep.readers.fields import FEATURES
from data_prep.readers.sources import BUNDLES, SUFFIXES, Source, family_of, others, refuse_pointer, some
from data_prep.readers.stated import NOTHING_STATED, Stated
from mhimdist.data.manifest import MANIFEST_NAME, Manifest, arriving
from mhimdist.errors import DataError

CLAM_FEATURES, CLAM_COORDS = "pt_files", "h5_files"
EMBEDDINGS, PATCHES = "embeddings", "patches"
"""Features as .pt beside CLAM's coordinates, as the public CAMELYON16 features of UNI are laid out."""
COORDS_OF = {CLAM_FEATURES: CLAM_COORDS, EMBEDDINGS: PATCHES}
TRIDENT_FEATURES = "features_"
NO_FEATURES = ("patches", "masks", "stitches", "contours", "contours_geojson", "thumbnails", "visualization")
"""Folders that CLAM and TRIDENT write beside their features; `patches` holds coordinates alone."""
_TRIDENT_SETTINGS = re.compile(r"[\d.]+x_\d+px")  # such as 20x_256px_0px_overlap
THREADS = 8
"""Threads that look at files: on network storage they wait more than they compute."""

Bag = tuple[str, tuple, dict[str, Any]]
"""A bag in a bundle: its key, its place, and its details in the bundle."""


def find_features(path: Path, stated: Stated = NOTHING_STATED) -> dict[str, Source]:
    """Find the features of every slide in a folder and its subfolders, or in one bundle of bags.

    A folder holds one file (or zarr store) per slide, `<slide>.<suffix>`, or bundles; the first bytes of a
    file decide what it is. CLAM's folder is recognised by its pt_files, whose coordinates then come from the
    h5_files next to them; TRIDENT's by its features_<encoder>, which may be two folders down. Only these
    folders are read. A folder may also hold one such folder per cohort, at any depth. Any other folder is
    read with all its subfolders, as STAMP repeats the folders of the slides. slideflow's `<slide>.index.npz`
    holds the coordinates of `<slide>.pt`, `patches` those of `embeddings`, and torchmil's folders beside
    `features` hold coordinates and labels. A CSV file holds features if its first line numbers them. Slides
    have the names of their files, so no two files may have the same name. Next to a manifest of ours, only
    the shards that it lists are read. Hidden files and files with other suffixes are passed over.

    Args:
        path: the folder or bundle.
        stated: what the user states about the features.

    Returns:
        The source of each slide's features, by slide.

    Raises:
        DataError: there is nothing to read, a slide has two files, the folder holds more than one set of
            features, or a sidecar is alone.
        ManifestError: shards of ours are not those of their manifest.
    """
    if path.is_file() or (path.is_dir() and family_of(path) == "zarr"):
        return _collect(path.parent, [path], stated)
    if not path.is_dir():
        raise DataError(f"no folder of features at {path}")
    folders = _folders_of_features(path)
    if not (files := [file for folder in folders for file in _candidates(folder)]):
        names = some(below.name for below in sorted(path.iterdir())) or "nothing"
        raise DataError(
            f"no features in {path}: expected files that end in {', '.join(_suffixes())}, got "
            f"{names}{others().hint}"
        )
    found = _collect(folders[0] if len(folders) == 1 else path, files, stated)
    for folder in folders:
        name = COORDS_OF.get(folder.name)
        if name is not None and (beside := folder.with_name(name)).is_dir():
            coords = {file.stem: file for file in _candidates(beside) if file.suffix.lower() == ".h5"}
            for slide, source in found.items():
                if slide in coords and source.path.is_relative_to(folder):
                    found[slide] = replace(source, coords=coords[slide])
    return {slide: torchmil.with_sides(source, slide) for slide, source in found.items()}


def _folders_of_features(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> list[Path]:
    """The folder itself if it holds features, otherwise those below where CLAM or TRIDENT puts them.

    Raises:
        DataError: it holds more than one set of features of the same slides.
    """
    state = folder.stat()
    if (state.st_dev, state.st_ino) in above:  # a link to a folder that holds it
        return []
    if (found := _folder_of_one(folder)) is not None:
        return [found]
    above |= {(state.st_dev, state.st_ino)}
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    cohorts = {path: _folders_of_features(path, above) for path in below if path.name not in NO_FEATURES}
    if all(folders in ([], [path]) for path, folders in cohorts.items()):
        return [folder]  # no tool wrote anything below
    return [found for folders in cohorts.values() for found in folders if _has_features(found)]


def _folder_of_one(folder: Path) -> Path | None:
    """Where a single cohort's features are; None if neither the folder nor a tool's folder in it has any.

    Raises:
        DataError: the folder holds more than one set of features.
    """
    if any(_is_candidate(path) for path in folder.iterdir()):
        return folder
    if torchmil.is_folder(folder):
        return _folder_of_one(folder / torchmil.FEATURES)
    for name in (CLAM_FEATURES, CLAM_COORDS):
        if _has_features(folder / name):
            return folder / name
    if (folder / PATCHES).is_dir() and _has_features(folder / EMBEDDINGS):
        return folder / EMBEDDINGS
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    settings = [path for path in below if _TRIDENT_SETTINGS.match(path.name)]
    nested = [path for parent in settings for path in sorted(parent.iterdir()) if path.is_dir()]
    named = [
        path for path in (*below, *nested) if path.name.startswith(TRIDENT_FEATURES) and _has_features(path)
    ]
    if len(named) > 1:
        names = some((str(path.relative_to(folder)) for path in named), 20)
        raise DataError(f"{folder} holds {len(named)} sets of features; give one of {names}")
    return named[0] if named else None


def _has_features(folder: Path) -> bool:
    return folder.is_dir() and next(_candidates(folder), None) is not None


def _candidates(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """The files and stores in a folder and its subfolders that may hold features, in order."""
    state = folder.stat()
    if (state.st_dev, state.st_ino) in above:  # a link to a folder that holds it
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == MANIFEST_NAME:
            continue
        if _is_candidate(path):
            yield path
        elif path.is_dir():
            yield from _candidates(path, above | {(state.st_dev, state.st_ino)})


def _is_candidate(path: Path) -> bool:
    if path.is_dir():
        return family_of(path) == "zarr"
    suffix = path.suffix.lower()
    return path.is_file() and (suffix in _suffixes() or (suffix == ".csv" and family_of(path) == "csv"))


def _suffixes() -> dict[str, str]:
    """The families by suffix, those of other packages included."""
    return SUFFIXES | others().suffixes


def _collect(folder: Path, paths: list[Path], stated: Stated) -> dict[str, Source]:
    found: dict[str, Source] = {}
    sidecars = [path for path in paths if npy.sidecar_of(path)]
    indices = {path: index for path in paths if (index := _index_of(path)) is not None}
    bags = [path for path in paths if not npy.sidecar_of(path) and path not in indices.values()]
    ours = _bags_of_ours({path.parent for path in bags})

    def sources_of(path: Path) -> list[tuple[str, Source]]:
        family = family_of(path) or _suffixes().get(path.suffix.lower())
        if family is None:
            raise DataError(f"{path}: no features (expected a file that ends in {', '.join(_suffixes())})")
        if family not in BUNDLES:
            encoder = _encoder_of(path) if stated.encoder is None else None
            said = (("encoder", encoder),) if encoder else ()
            return [(path.stem, Source(path, family, coords=indices.get(path), said=said, stated=stated))]
        refuse_pointer(path)
        bags_in = ours[path] if path in ours else BUNDLES[family](path, stated.arrays)
        return [_bag(path, family, bag, stated) for bag in bags_in]

    with ThreadPoolExecutor(THREADS) as threads:
        for path, sources in zip(bags, threads.map(sources_of, bags), strict=True):
            for slide, source in sources:
                if slide in found:
                    first, second = (str(other.relative_to(folder)) for other in (found[slide].path, path))
                    raise DataError(
                        f"slide {slide!r} has two files of features: {first} and {second} in {folder}; "
                        f"{_one_of_them(slide)}"
                    )
                found[slide] = source
    for path in sidecars:
        owner = path.with_name(f"{npy.sidecar_of(path)}{path.suffix}")
        if owner not in bags:
            raise DataError(f"{path.name}: expected {owner.name} next to it in {path.parent}")
    return found


def _one_of_them(slide: str) -> str:
    if slide.lower() in FEATURES:
        return "a slide is named after its file, so call each file after its slide, not after its content"
    return "give the folder of one of them"


def _index_of(path: Path) -> Path | None:
    """The file next to a .pt file in which slideflow keeps the coordinates of the patches."""
    index = path.with_suffix(".index.npz")
    return index if path.suffix.lower() == ".pt" and index.is_file() else None


def _bag(path: Path, family: str, bag: Bag, stated: Stated) -> tuple[str, Source]:
    key, place, said = bag
    slide = said.get("slide")
    slide = slide if isinstance(slide, str) and slide else key
    plain = {name: value for name, value in said.items() if isinstance(value, (str, int, float, tuple))}
    return slide, Source(path, family, place, said=tuple((plain | {"slide": slide}).items()), stated=stated)


def _bags_of_ours(folders: set[Path]) -> dict[Path, Iterator[Bag]]:
    """The bags of the shards in folders with a manifest of ours, by the file of the shard."""
    bags: dict[Path, Iterator[Bag]] = {}
    for folder in sorted(folder for folder in folders if (folder / MANIFEST_NAME).is_file()):
        bags |= {folder / name: iter(()) for name in arriving(folder)}  # not in the data set yet
        manifest = Manifest.open(folder)
        info = manifest.info
        if names := manifest.feature_sets:
            raise DataError(
                f"{folder} holds the feature sets {', '.join(names)}: shards of several encoders are not "
                "read as features; give the features that they were made of, or append to them"
            )
        for name, rows in manifest.rows_by_shard().items():
            bags[folder / name] = tar.bags_of_ours(folder / name, rows, info.classes, info.task)
    return bags


def _encoder_of(path: Path) -> str | None:
    """The encoder in the name of TRIDENT's folder; older versions of TRIDENT write it nowhere else."""
    name = Path(os.path.abspath(path)).parent.name
    return name.removeprefix(TRIDENT_FEATURES) or None if name.startswith(TRIDENT_FEATURES) else None
