"""What CLAM, TRIDENT and STAMP leave on disk for six small slides, three per class, and a table of labels.

Dimensions: N instances of a bag, D features.
"""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

NUM_SLIDES, NUM_FEATURES = 6, 16
CLASSES = ("normal", "tumor")
PATCH = 256


def drawn_slides() -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Name, class, float32 features N x D and int64 coordinates N x 2 of each slide."""
    draw = np.random.default_rng(0)
    for i in range(1, NUM_SLIDES + 1):
        label, size = CLASSES[i % 2], 20 + 3 * i
        features_ND = draw.standard_normal((size, NUM_FEATURES)).astype(np.float32)
        if label == "tumor":
            features_ND[:5] += 3
        coords_N2 = np.stack([np.arange(size) % 6, np.arange(size) // 6], axis=1) * PATCH
        yield f"slide-{i}", label, features_ND, coords_N2


def write_clam(folder: Path) -> None:
    """`clam/` as `extract_features_fp.py` leaves it, and `labels.csv`."""
    for slide, _, features_ND, coords_N2 in drawn_slides():
        _h5(folder / "clam" / "h5_files" / f"{slide}.h5", features=features_ND, coords=coords_N2)
        place = folder / "clam" / "pt_files"
        place.mkdir(exist_ok=True)
        torch.save(torch.from_numpy(features_ND), place / f"{slide}.pt")
    _labels(folder)


def write_trident(folder: Path) -> None:
    """`trident/` as `run_batch_of_slides.py` leaves it, and `labels.csv`."""
    job = folder / "trident"
    for slide, _, features_ND, coords_N2 in drawn_slides():
        place = job / f"20x_{PATCH}px_0px_overlap"
        attributes = {"patch_size": PATCH, "target_magnification": 20, "encoder": "uni_v1"}
        _h5(
            place / "features_uni_v1" / f"{slide}.h5",
            features=features_ND[None],
            coords=coords_N2,
            **attributes,
        )
        _h5(place / "patches" / f"{slide}_patches.h5", coords=coords_N2)
        for name in ("contours", "contours_geojson", "thumbnails"):
            (job / name).mkdir(exist_ok=True)
            (job / name / f"{slide}.jpg").touch()
    _labels(folder)


def write_stamp(folder: Path) -> None:
    """`stamp/` as `stamp preprocess` leaves it, and its two tables."""
    patients, slides = ["PATIENT,status"], ["PATIENT,FILENAME"]
    for number, (slide, label, features_ND, coords_N2) in enumerate(drawn_slides(), 1):
        path = folder / "stamp" / "virchow2-1a2b3c4d" / f"site-{number % 2}" / f"{slide}.h5"
        _h5(
            path, feats=features_ND, coords=coords_N2 / 2.0, extractor="virchow2", unit="um", tile_size_px=224
        )
        patients.append(f"patient-{number},{label}")
        slides.append(f"patient-{number},site-{number % 2}/{slide}.h5")
    (folder / "clini.csv").write_text("\n".join(patients) + "\n")
    (folder / "slide.csv").write_text("\n".join(slides) + "\n")


WRITERS = {"clam/": write_clam, "trident/": write_trident, "stamp/": write_stamp}


def _labels(folder: Path) -> None:
    lines = ["case_id,slide_id,label"]
    lines += [f"patient-{i},{slide},{label}" for i, (slide, label, *_) in enumerate(drawn_slides(), 1)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def _h5(path: Path, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if isinstance(value, np.ndarray):
                file[name] = value
            else:
                file.attrs[name] = value
