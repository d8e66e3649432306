"""Small files in the layouts of public CAMELYON16 feature sets, three slides per class.

Dimensions: N instances of a bag, D features.
"""

from pathlib import Path

import h5py
import numpy as np
import torch
from tool_folders import NUM_FEATURES, drawn_slides

NAMES = {f"slide-{i}": f"{('normal', 'tumor')[i % 2]}_{i:03d}" for i in range(1, 7)}
"""The slides of `drawn_slides` under names as CAMELYON16 has them."""
NUM_POSITIVE = 5


def write_mhim_mil(folder: Path) -> None:
    """What the authors of MHIM-MIL release: `pt/<slide>.pt` and a `label.csv` without a header."""
    (folder / "c16" / "pt").mkdir(parents=True)
    lines = []
    for slide, label, features_ND, _ in drawn_slides():
        torch.save(torch.from_numpy(features_ND), folder / "c16" / "pt" / f"{NAMES[slide]}.pt")
        lines.append(f"{NAMES[slide]},{int(label == 'tumor')}")
    (folder / "c16" / "label.csv").write_text("\n".join(lines) + "\n")


def write_dsmil(folder: Path) -> None:
    """What DSMIL's `compute_feats.py` writes: a folder of CSV files per class, and tables of them."""
    place, rows = folder / "datasets" / "Camelyon16", {"0-normal": [], "1-tumor": []}
    for slide, label, features_ND, _ in drawn_slides():
        name = "1-tumor" if label == "tumor" else "0-normal"
        (place / name).mkdir(parents=True, exist_ok=True)
        header = ",".join(map(str, range(NUM_FEATURES)))
        path = place / name / f"{NAMES[slide]}.csv"
        np.savetxt(path, features_ND, fmt="%.4f", delimiter=",", header=header, comments="")
        rows[name].append(f"{path.relative_to(folder)},{int(label == 'tumor')}")
    for name, lines in rows.items():
        (place / f"{name}.csv").write_text("\n".join(["0,label", *lines]) + "\n")
    everything = [line for lines in rows.values() for line in lines]
    (place / "Camelyon16.csv").write_text("\n".join(["0,label", *everything]) + "\n")


def write_torchmil(folder: Path) -> None:
    """The Camelyon16_MIL of torchmil after its archives are unpacked, each into the folder of its name."""
    place, lines = folder / "torchmil" / "patches_512", ["bag_name,split"]
    for slide, label, features_ND, coords_N2 in drawn_slides():
        labels_N = np.zeros(len(features_ND), np.int64)
        labels_N[: NUM_POSITIVE * (label == "tumor")] = 1
        arrays = {
            "features/features_UNI": features_ND,
            "coords": coords_N2,
            "patch_labels": labels_N,
            "labels": np.array([int(label == "tumor")]),
        }
        for name, array in arrays.items():
            (place / name).mkdir(parents=True, exist_ok=True)
            np.save(place / name / f"{NAMES[slide]}.npy", array)
        lines.append(f"{NAMES[slide]},train")
    (place.parent / "splits.csv").write_text("\n".join(lines) + "\n")


def write_kaczmarj(folder: Path) -> None:
    """kaczmarj/camelyon16-uni: `embeddings/<slide>.pt`, coordinates in `patches/<slide>.h5`; and labels."""
    place, lines = folder / "camelyon16-uni", ["slide,label"]
    for name in ("embeddings", "patches"):
        (place / name).mkdir(parents=True)
    for slide, label, features_ND, coords_N2 in drawn_slides():
        torch.save(torch.from_numpy(features_ND), place / "embeddings" / f"{NAMES[slide]}.pt")
        with h5py.File(place / "patches" / f"{NAMES[slide]}.h5", "w") as file:
            file["coords"] = coords_N2
            file["coords"].attrs["patch_size"] = 512
        lines.append(f"{NAMES[slide]},{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
