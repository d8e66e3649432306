"""Slides of a few cases in shards, and the same with one united slide per case, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from feature_folders import NUM_FEATURES, shard_folder

SLIDES_OF_CASE = (1, 3, 2, 1, 2, 4, 1, 2, 3, 2, 1, 2)
"""Number of slides of each case; the label of case i is i % 2."""


def case_shards(folder: Path, *, coords: bool = False, **options: Any) -> tuple[Path, Path]:
    """Write slides by case as shards, and each case as one slide of the same instances as other shards.

    Positive cases have a few shifted instances in one of their slides.
    """
    generator = np.random.default_rng(3)
    slides, united = folder / "slides", folder / "united"
    lines = {place: ["slide,label,case"] for place in (slides, united)}
    for place in lines:
        (place / "features").mkdir(parents=True)
    for case, num_slides in enumerate(SLIDES_OF_CASE):
        name, label, parts, labels = f"P.{case}", "ab"[case % 2], [], []
        for number in range(num_slides):
            slide = f"S{case}.{number}"
            features_ND = generator.standard_normal((int(generator.integers(9, 40)), NUM_FEATURES))
            if case % 2 and number == num_slides - 1:
                features_ND[:6] += 2.0
            parts.append(features_ND.astype(np.float16))
            labels.append(np.arange(len(features_ND)) < 6 * (case % 2))
            _save(slides / "features", slide, parts[-1], labels[-1], coords=coords)
            lines[slides].append(f"{slide},{label},{name}")
        _save(united / "features", name, np.concatenate(parts), np.concatenate(labels), coords=coords)
        lines[united].append(f"{name},{label},{name}")
    for place, text in lines.items():
        (place / "labels.csv").write_text("\n".join(text))
    return shard_folder(slides, name="cases", **options), shard_folder(united, name="cases", **options)


def _save(folder: Path, slide: str, features_ND: np.ndarray, labels_N: np.ndarray, *, coords: bool) -> None:
    np.save(folder / f"{slide}.npy", features_ND)
    if coords:
        size = len(features_ND)
        np.save(folder / f"{slide}.coords.npy", np.arange(2 * size).reshape(size, 2))
        np.save(folder / f"{slide}.instance_labels.npy", labels_N.astype(np.uint8))
