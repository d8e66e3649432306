"""Folders of features: cohorts, tools, layouts of arrays, and what cannot be used.

Dimensions: N instances of a bag, D features.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from wild_inputs import (
    NUM_FEATURES,
    Case,
    Holds,
    Link,
    Refused,
    as_text,
    columns_of,
    draw_features,
    draw_rows,
    no_features,
)


class Slides:
    """Four drawn slides with a label each, their features and coordinates."""

    def __init__(self, draw: np.random.Generator):
        self.rows = draw_rows(draw, 4)
        self.names = [row.slide for row in self.rows]
        self.table = as_text(columns_of(self.rows))
        self.features = {name: draw_features(draw, 3 + i) for i, name in enumerate(self.names)}
        self.coords = {
            name: draw.integers(0, 99, (len(features_ND), 2)) * 256
            for name, features_ND in self.features.items()
        }

    def h5(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a slide's .h5 file."""
        return {"features": self.features[name], "coords": self.coords[name]}

    def case(
        self,
        name: str,
        files: Mapping[str, Any],
        answer: Holds | Refused | None = None,
        options: str = "",
        *,
        coords: bool = False,
        kind: str = "folder",
    ) -> Case:
        """A case with these files in `features/`; by default, it holds all slides as they are."""
        below = {f"features/{path}": content for path, content in files.items()}
        return Case(
            kind,
            name,
            {"labels.csv": self.table, **below},
            answer or Holds(self.rows),
            options,
            self.features,
            self.coords if coords else {},
        )


def tools(draw: np.random.Generator) -> Iterator[Case]:
    """What CLAM, TRIDENT, STAMP and slideflow write, alone and as cohorts."""
    made = Slides(draw)
    names, features, coords = made.names, made.features, made.coords
    cohort = dict(zip(names, ("BRCA", "BRCA", "LUAD", "LUAD"), strict=True))
    patches = {name: {"coords": coords[name]} for name in names}
    clam = {f"pt_files/{n}.pt": features[n] for n in names} | {f"h5_files/{n}.h5": made.h5(n) for n in names}
    beside = {f"patches/{n}.h5": patches[n] for n in names} | {
        "masks/a.jpg": b"\xff\xd8",
        "process_list.csv": "a,b\n",
    }
    cohorts = {
        f"{cohort[path.split('/')[1].split('.')[0]]}/{path}": content for path, content in clam.items()
    }
    more = {f"{cohort[n]}/patches/{n}.h5": patches[n] for n in names}
    trident = {f"20x_256px_0px_overlap/features_uni_v1/{n}.h5": made.h5(n) for n in names}
    their_patches = {f"20x_256px_0px_overlap/patches/{n}_patches.h5": patches[n] for n in names}
    of_trident = {f"{cohort[n]}/20x_256px_0px_overlap/features_uni_v1/{n}.h5": made.h5(n) for n in names}
    second = {f"20x_256px_0px_overlap/features_gigapath/{n}.h5": made.h5(n) for n in names}
    archives = {f"{'TCGA' if path < 'C' else 'CPTAC'}/{path}": content for path, content in cohorts.items()}
    vectors = {
        f"20x_256px_0px_overlap/slide_features_titan/{n}.h5": {"features": features[n][0]} for n in names
    }
    slideflow = {f"{n}.pt": features[n] for n in names} | {f"{n}.index.npz": coords[n] for n in names}
    stamp = {
        f"{cohort[n]}/deeper/{n}.h5": {"feats": features[n], "coords": coords[n].astype(float)} for n in names
    }
    mixed = {path: content for path, content in cohorts.items() if path.startswith("BRCA")} | {
        path: content for path, content in of_trident.items() if path.startswith("LUAD")
    }
    double = {f"{name}/pt_files/{n}.pt": features[n] for name in ("BRCA", "LUAD") for n in names}
    for name, files, with_coords, answer in (
        ("CLAM's", clam, True, None),
        ("CLAM's with patches and masks", clam | beside, True, None),
        ("CLAM's .pt files alone", {f"pt_files/{n}.pt": features[n] for n in names}, False, None),
        ("CLAM's .h5 files alone", {f"h5_files/{n}.h5": made.h5(n) for n in names}, True, None),
        ("cohorts of CLAM", cohorts, True, None),
        ("cohorts of CLAM, two folders down", {f"TCGA/2019/{p}": c for p, c in cohorts.items()}, True, None),
        ("cohorts of two archives", archives, True, None),
        ("cohorts of CLAM with patches", cohorts | more, True, None),
        ("TRIDENT's", trident | their_patches, True, None),
        ("TRIDENT's with vectors of slides", trident | vectors, True, None),
        ("CLAM's in upper case", {p.replace(".h5", ".H5"): c for p, c in clam.items()}, True, None),
        ("cohorts of TRIDENT", of_trident, True, None),
        ("a cohort of CLAM and one of TRIDENT", mixed, True, None),
        (
            "two encoders of TRIDENT",
            trident | second,
            True,
            no_features("holds 2 sets of features", "features_gigapath", "give one of"),
        ),
        (
            "a slide in two cohorts",
            double,
            False,
            no_features("has two files of features", "BRCA/pt_files", "LUAD/pt_files"),
        ),
        ("slideflow's", slideflow, True, None),
        ("slideflow's with its parameters", slideflow | {"bags_config.json": "{}"}, True, None),
        ("STAMP's", stamp, True, None),
        ("plain cohorts", {f"{cohort[n]}/{n}.pt": features[n] for n in names}, False, None),
        (
            "patches alone",
            {f"patches/{n}.h5": patches[n] for n in names},
            False,
            no_features("expected one of the keys", "holds coordinates and no features"),
        ),
    ):
        yield made.case(name, files, answer, coords=with_coords, kind="tool")


def files(draw: np.random.Generator) -> Iterator[Case]:
    """One file per slide, hidden files, links, other suffixes."""
    made = Slides(draw)
    names, features, coords = made.names, made.features, made.coords
    npy = {f"{n}.npy": features[n] for n in names}
    first = names[0]
    rest = {path: content for path, content in npy.items() if not path.startswith(first)}
    mixed = {
        f"{names[0]}.pt": features[names[0]],
        f"{names[1]}.npy": features[names[1]],
        f"{names[2]}.h5": {"features": features[names[2]]},
        f"{names[3]}.npz": {"features": features[names[3]]},
    }
    hidden = {f"._{first}.npy": b"\0\5\x16\7", ".DS_Store": b"\0", "Thumbs.db": b"\0", "readme.txt": "x"}
    outside = {f"../store/{n}.npy": features[n] for n in names}
    for name, given, answer in (
        (".npy", npy, None),
        (".PT", {f"{n}.PT": features[n] for n in names}, None),
        ("of four kinds", mixed, None),
        ("hidden files of macOS and Windows beside", npy | hidden, None),
        ("what macOS adds to a zip", npy | {f"__MACOSX/._{n}.npy": b"\0\5" for n in names}, None),
        ("a download that goes on", npy | {"other.npy.part": b"\x93NUMPY", "x.h5.tmp": b"\0"}, None),
        (
            "a folder per slide",
            {f"{n}/features.npy": features[n] for n in names},
            no_features("slide 'features' has two files", "call each file after its slide"),
        ),
        ("links to files", outside | {f"{n}.npy": Link(f"../store/{n}.npy") for n in names}, None),
        ("a link to a folder", outside | {"all": Link("../store")}, None),
        ("a link to its own folder", npy | {"again": Link(".")}, None),
        (
            "a link to nothing",
            rest | {f"{first}.npy": Link("nowhere.npy")},
            no_features("no features in", "for 1 of 4 slides", f"'{first}'"),
        ),
        (
            "a file of other content",
            rest | {f"{first}.npy": b"hello"},
            no_features(f"{first}.npy", "not a .npy file", "--skip-bad"),
        ),
        ("an empty file", rest | {f"{first}.npy": b""}, no_features(f"{first}.npy", "--skip-bad")),
        (
            "a file cut short",
            rest | {f"{first}.pt": b"PK\3\4" + bytes(99)},
            no_features(f"{first}.pt", "damaged", "--skip-bad"),
        ),
        (
            "two files of a slide",
            npy | {f"{first}.pt": features[first]},
            no_features("has two files of features", f"{first}.npy", f"{first}.pt"),
        ),
        (
            "slides and no features",
            {f"{n}.svs": b"II*\0" for n in names},
            no_features("no features in", "expected files that end in", f"{min(names)}.svs"),
        ),
        ("nothing but a note", {"readme.txt": "x"}, no_features("no features in", "'readme.txt'")),
    ):
        yield made.case(name, given, answer)
    yield made.case(
        "coordinates beside .npy", npy | {f"{n}.coords.npy": coords[n] for n in names}, coords=True
    )
    yield made.case(
        "coordinates of no slide",
        npy | {"other.coords.npy": coords[first]},
        no_features("other.coords.npy", "expected other.npy next to it"),
    )
    yield made.case(
        "a file of other content, left out",
        rest | {f"{first}.npy": b"hello"},
        Holds(made.rows[1:], left_out={first: "not a .npy file"}),
        "--skip-bad",
    )


def arrays(draw: np.random.Generator) -> Iterator[Case]:
    """Shapes, types and keys of arrays."""
    made = Slides(draw)
    names, features, coords = made.names, made.features, made.coords
    first, size = names[0], len(features[names[0]])
    h5 = {f"{n}.h5": made.h5(n) for n in names}
    npy = {f"{n}.npy": features[n] for n in names}

    def odd(array: np.ndarray) -> dict[str, np.ndarray]:
        return npy | {f"{first}.npy": array}

    def placed(array: np.ndarray) -> dict[str, Any]:
        return h5 | {f"{first}.h5": {"features": features[first], "coords": array}}

    def under(key: str) -> dict[str, Any]:
        return {f"{n}.h5": {key: features[n]} for n in names}

    two = {f"{n}.h5": {"features": features[n], "feats": features[n] + 1} for n in names}
    types = dict(zip(names, (np.float16, np.float32, np.float64, ">f4"), strict=True))
    big = features[first].astype(np.float32).copy()
    big[0, 0] = 1e6
    nan, inf = features[first].copy(), features[first].copy()
    nan[1, 2], inf[0, 1] = np.nan, np.inf
    bfloats = {f"{n}.pt": torch.from_numpy(features[n]).bfloat16() for n in names}  # hold +-99/16 exactly
    graph = {f"{n}.pt": torch.from_numpy(features[n]).requires_grad_() for n in names}
    wide = draw_features(draw, size, NUM_FEATURES + 2)
    flipped = {f"{n}.npy": features[n].T.copy() for n in names}
    short, halves = coords[first][:-1], coords[first] + 0.5
    left = Holds(made.rows[1:], left_out={first: ""})
    drop, skip = "--drop-coords", "--skip-bad"
    for name, given, answer, options in (
        ("types of four kinds", {f"{n}.npy": features[n].astype(types[n]) for n in names}, None, ""),
        ("a batch axis", {f"{n}.npy": features[n][None] for n in names}, None, ""),
        ("bfloat16", bfloats, None, ""),
        ("tensors with a gradient", graph, None, ""),
        (
            "a dictionary in .pt",
            {f"{n}.pt": {"features": torch.from_numpy(features[n]), "coords": None} for n in names},
            None,
            "",
        ),
        ("arrays of numpy in .pt", {f"{n}.pt": {"features": features[n]} for n in names}, None, ""),
        ("column-major", {f"{n}.npy": np.asfortranarray(features[n]) for n in names}, None, ""),
        ("embeddings", under("embeddings"), None, ""),
        (
            "a key of its own",
            under("feature"),
            no_features("'feature'", "give --feature-key, such as --feature-key feature"),
            "",
        ),
        ("a key of its own, said", under("feature"), None, "--feature-key feature"),
        (
            "a key that is not there",
            under("feature"),
            no_features("expected one of the keys ('x',)", "'feature'"),
            "--feature-key x",
        ),
        ("two keys", two, no_features("holds features under 'features', 'feats'", "give --feature-key"), ""),
        ("two keys, one said", two, None, "--feature-key features"),
        (
            "whole numbers",
            {f"{n}.npy": features[n].astype(np.int64) for n in names},
            no_features("expected features to be floats, got torch.int64"),
            "",
        ),
        ("text", odd(np.array(["a", "b"])), no_features(f"{first}.npy", "cannot be used"), ""),
        ("objects", odd(np.array([{}, {}], dtype=object)), no_features(f"{first}.npy", "Python objects"), ""),
        (
            "an empty bag",
            odd(np.empty((0, NUM_FEATURES), np.float32)),
            no_features(f"{first}.npy: the bag is empty", skip),
            "",
        ),
        ("an empty bag, left out", odd(np.empty((0, NUM_FEATURES), np.float32)), left, skip),
        ("NaN", odd(nan), no_features(f"{first}.npy: 1 of its features are NaN"), ""),
        ("NaN, left out", odd(nan), left, skip),
        ("infinite", odd(inf), no_features(f"{first}.npy: 1 of its features are NaN or infinite"), ""),
        ("too large for float16", odd(big), no_features(f"{first}", "float16", "--dtype"), ""),
        (
            "another width",
            odd(wide),
            no_features(
                f"slide {first!r}: its features are {NUM_FEATURES + 2} wide, most others {NUM_FEATURES}", skip
            ),
            "",
        ),
        ("another width, left out", odd(wide), left, skip),
        (
            "one transposed",
            odd(draw_features(draw, 5).T.copy()),
            no_features(f"{first!r}: its features are 5 wide", "transposed"),
            "",
        ),
        (
            "all transposed",
            flipped,
            no_features("all 4 slides have 6 rows", "transposed", "patches x features"),
            "",
        ),
        (
            "transposed beside coordinates",
            h5 | {f"{first}.h5": {"features": features[first].T, "coords": coords[first]}},
            no_features(f"{first}.h5", "the features are transposed"),
            "",
        ),
        (
            "four axes",
            odd(features[first][None, None]),
            no_features(f"{first}.npy: expected features of shape N x D"),
            "",
        ),
        (
            "coordinates of one patch less",
            placed(short),
            no_features(f"{first}.h5: expected coords of shape ({size}, 2), got ({size - 1}, 2)", drop),
            "",
        ),
        ("coordinates of one patch less, dropped", placed(short), None, drop),
        (
            "coordinates between pixels",
            placed(halves),
            no_features(f"{first}.h5: expected coords to be whole numbers", drop),
            "",
        ),
        ("coordinates between pixels, dropped", placed(halves), None, drop),
        (
            "coordinates of three axes",
            placed(np.zeros((size, 3))),
            no_features(f"{first}.h5: expected coords of shape", drop),
            "",
        ),
    ):
        yield made.case(name, given, answer, options, kind="array")
    yield made.case("coordinates that fit, dropped", h5, options=drop, kind="array")
    boxes = {n: np.concatenate([coords[n], np.full_like(coords[n], 256)], 1) for n in names}
    with_boxes = {f"{n}.h5": {"features": features[n], "coords": boxes[n]} for n in names}
    yield made.case("coordinates with widths", with_boxes, coords=True, kind="array")
    yield made.case(
        "coordinates as decimals",
        {f"{n}.h5": made.h5(n) | {"coords": coords[n] / 1.0} for n in names},
        coords=True,
        kind="array",
    )


def single_patches(draw: np.random.Generator) -> Iterator[Case]:
    """Slides of one patch, stored without an axis of patches."""
    made = Slides(draw)
    one = {name: features_ND[:1] for name, features_ND in made.features.items()}
    place = {name: coords_N2[:1] for name, coords_N2 in made.coords.items()}
    for suffix in (".pt", ".npy", ".h5"):
        files = {
            f"features/{n}{suffix}": {"features": one[n][0], "coords": place[n]}
            if suffix == ".h5"
            else one[n][0]
            for n in made.names
        }
        coords = place if suffix == ".h5" else {}
        yield Case(
            "array",
            f"one patch in {suffix}",
            {"labels.csv": made.table, **files},
            Holds(made.rows),
            "",
            one,
            coords,
        )


KINDS = (tools, files, arrays, single_patches)
