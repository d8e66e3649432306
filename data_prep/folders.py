"""Finding the features of slides in a folder, as CLAM, TRIDENT, STAMP and others lay them out."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from data_prep import read_numpy
from data_prep.sources import BUNDLES, SUFFIXES, Source, family_of, some
from mhimdist.data.manifest import MANIFEST_NAME
from mhimdist.errors import DataError

CLAM_FEATURES, CLAM_COORDS = "pt_files", "h5_files"
THREADS = 8
"""That look at files: on network storage they wait more than they compute."""


def find_features(path: Path) -> dict[str, Source]:
    """The features of every slide in a folder, or in one bundle of bags.

    A folder holds a file (or a zarr store) a slide, `<slide>.<suffix>`, or bundles; what a file is, its
    first bytes say. CLAM's folder is known by its pt_files, whose coordinates then come from the h5_files
    beside them, TRIDENT's by its features_<encoder>, which may be two folders down. If a folder
    holds nothing but one folder of features, that is taken. Files with other endings are passed over.

    Raises:
        DataError: nothing to read, two files for one slide, several sets of features, or a sidecar alone.
    """
    if path.is_file() or (path.is_dir() and family_of(path) == "zarr"):
        return _collect(path.parent, [path])
    if not path.is_dir():
        raise DataError(f"no folder of features at {path}")
    folder = _folder_of_features(path)
    found = _collect(folder, sorted(folder.iterdir()))
    if folder.name == CLAM_FEATURES and (beside := folder.with_name(CLAM_COORDS)).is_dir():
        coords = {file.stem: file for file in beside.iterdir() if file.suffix == ".h5"}
        return {slide: replace(source, coords=coords.get(slide)) for slide, source in found.items()}
    return found


def _folder_of_features(folder: Path) -> Path:
    """Where in a folder the feature files are."""
    if _has_features(folder):
        return folder
    for name in (CLAM_FEATURES, CLAM_COORDS):
        if (folder / name).is_dir() and _has_features(folder / name):
            return folder / name
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    nested = [path for parent in below for path in sorted(parent.iterdir()) if path.is_dir()]
    named = [path for path in (*below, *nested) if path.name.startswith("features_") and _has_features(path)]
    found = named or [path for path in below if _has_features(path)]
    if len(found) > 1:
        names = some((str(path.relative_to(folder)) for path in found), 20)
        raise DataError(f"{folder} holds {len(found)} sets of features: give one of {names}")
    if not found:
        names = some(path.name for path in sorted(folder.iterdir())) or "nothing"
        endings = ", ".join(SUFFIXES)
        raise DataError(f"no features in {folder} (files ending in {endings}); it holds {names}")
    return found[0]


def _has_features(folder: Path) -> bool:
    return any(_is_candidate(path) for path in folder.iterdir())


def _is_candidate(path: Path) -> bool:
    if path.suffix not in SUFFIXES or path.name == MANIFEST_NAME:  # ours, beside shards of ours
        return False
    return path.is_file() or family_of(path) == "zarr"


def _collect(folder: Path, paths: list[Path]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    candidates = [path for path in paths if _is_candidate(path)]
    sidecars = [path for path in candidates if read_numpy.sidecar_of(path.name)]
    bags = [path for path in candidates if not read_numpy.sidecar_of(path.name)]
    with ThreadPoolExecutor(THREADS) as threads:
        for path, sources in zip(bags, threads.map(_sources_of, bags), strict=True):
            for slide, source in sources:
                if slide in found:
                    first, second = found[slide].path.name, path.name
                    raise DataError(f"two files of features for one slide, {slide!r}: {first} and {second}")
                found[slide] = source
    for path in sidecars:
        owner = read_numpy.sidecar_of(path.name)
        if owner not in found or found[owner].family != "npy":
            raise DataError(f"{path.name} belongs to no {owner}.npy in {folder}")
    return found


def _sources_of(path: Path) -> list[tuple[str, Source]]:
    family = family_of(path) or SUFFIXES[path.suffix]
    if family not in BUNDLES:
        return [(path.stem, Source(path, family))]
    sources = []
    for key, place, said in BUNDLES[family](path):
        slide = said.get("slide")
        slide = slide if isinstance(slide, str) and slide else key
        plain = {name: value for name, value in said.items() if isinstance(value, (str, int, float))}
        sources.append((slide, Source(path, family, place, said=tuple((plain | {"slide": slide}).items()))))
    return sources
