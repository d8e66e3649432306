"""The embedded data sets: bags of real handwritten digits, and synthetic bags of CAMELYON16's shape.

`python -m data_prep.digits digits-c16` builds one; `ensure` hands it to a job. DATA_CARD.md, next to this
file, says what is real in them, what is sampled, and what simple models reach on them.

Dimensions: N instances of a bag, D features, I images of all digits, K images of one kind.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from data_prep.command_line import stoppable
from data_prep.shard import shard
from data_prep.writing.writer import appearing_whole
from mhimdist.data.remote import Location, is_remote
from mhimdist.errors import DataError
from mhimdist.files import Lock, home
from mhimdist.foreign_text import say
from mhimdist.process import run

HARD_DIGIT, SALIENT_DIGIT = 8, 9
SUBTYPE_DIGITS = (1, 8)  # the two digits that 4 x 4 pixels tell apart worst
NUM_C16_CASES = 20
NUM_TCGA_CASES = 80
MIN_POSITIVES = 5
SHAPED_FEATURES = 1024


@dataclass(frozen=True, eq=False)
class Slide:
    """One slide of a data set.

    Attributes:
        name: unique; it says nothing about the label.
        label: the name of its class.
        case: the patient; slides of one case draw from the same images.
        features_ND: float16, N x D.
        instance_labels_N: uint8, 0 for a negative instance; DATA_CARD.md explains the others.
    """

    name: str
    label: str
    case: str
    features_ND: np.ndarray
    instance_labels_N: np.ndarray


@dataclass(frozen=True)
class DataSet:
    """How one embedded data set is made.

    Attributes:
        classes: class names, the negative one first.
        description: one line, kept in the shards' manifest.
        synthetic: whether its instances are synthetic.
        scale: default bag size relative to CAMELYON16's.
        draw: yields the slides, from a generator and a scale.
    """

    classes: tuple[str, str]
    description: str
    synthetic: bool
    scale: float
    draw: Callable[[np.random.Generator, float], Iterator[Slide]]


def c16_facts() -> dict[str, Any]:
    """CAMELYON16's observed bag sizes, tumour fractions and number of slides per class."""
    facts: dict[str, Any] = json.loads(Path(__file__).with_name("c16_facts.json").read_text())
    return facts


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 1,797 digits averaged to 4 x 4 pixels, so that some are hard to tell apart.

    Returns:
        Features, float16, I x 16, in [-1, 1] and exact; digits, int64, I.
    """
    pixels_ID, digits_I = load_digits(return_X_y=True)
    blocks_ID = pixels_ID.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    return (blocks_ID / 8 - 1).astype(np.float16), digits_I


def _deal(rng: np.random.Generator, digits_I: np.ndarray, cases_of_digit: list[np.ndarray]) -> np.ndarray:
    """Deal the images out to the cases; no two cases share an image.

    Args:
        rng: source of the order.
        digits_I: the digit of each image.
        cases_of_digit: for each digit, the cases among which its images are divided as evenly as possible.

    Returns:
        The case of each image, int64, I.
    """
    case_I = np.empty(len(digits_I), np.int64)
    for digit, cases in enumerate(cases_of_digit):
        images_K = rng.permutation(np.flatnonzero(digits_I == digit))
        case_I[images_K] = np.resize(rng.permutation(cases), len(images_K))
    return case_I


def _draw_bag(
    rng: np.random.Generator, positives_K: np.ndarray, negatives_K: np.ndarray, num_positives: int, size: int
) -> np.ndarray:
    """Draw a bag's images, with repetition, in random order: int64, N."""
    positives = rng.choice(positives_K, num_positives)
    negatives = rng.choice(negatives_K, size - num_positives)
    return rng.permutation(np.concatenate([positives, negatives]))


def _c16_sizes(rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deal CAMELYON16's labels, bag sizes and tumour fractions out to its 398 slides, in random order.

    Sizes and fractions are independent of each other. Every observed one is used before any is used again.

    Returns:
        Label, bag size and number of positive instances of each slide, int64.
    """
    facts = c16_facts()
    labels = rng.permutation(np.repeat([0, 1], [facts["num_slides"]["normal"], facts["num_slides"]["tumor"]]))
    sizes = np.resize(rng.permutation(facts["bag_sizes"]), len(labels))
    sizes = np.maximum(MIN_POSITIVES, np.rint(sizes * scale)).astype(np.int64)
    num_positives = np.zeros_like(labels)
    fractions = np.resize(rng.permutation(facts["tumour_fractions"]), labels.sum())
    num_positives[labels == 1] = np.maximum(MIN_POSITIVES, np.rint(fractions * sizes[labels == 1]))
    return labels, sizes, num_positives


def _digits_c16(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    features_ID, digits_I = digit_images()
    case_I = _deal(rng, digits_I, [np.arange(NUM_C16_CASES)] * 10)
    positive_I = (digits_I == HARD_DIGIT) | (digits_I == SALIENT_DIGIT)
    instance_labels_I = np.select([digits_I == HARD_DIGIT, digits_I == SALIENT_DIGIT], [1, 2], 0)
    labels, sizes, num_positives = _c16_sizes(rng, scale)
    # Slides sorted by label and dealt out in turn: every case gets its share of both classes.
    cases = np.empty_like(labels)
    cases[np.argsort(labels, kind="stable")] = np.resize(np.arange(NUM_C16_CASES), len(labels))
    for i, case in enumerate(cases):
        positives_K = np.flatnonzero((case_I == case) & positive_I)
        negatives_K = np.flatnonzero((case_I == case) & ~positive_I)
        images_N = _draw_bag(rng, positives_K, negatives_K, num_positives[i], sizes[i])
        yield Slide(
            name=f"slide_{i:03d}",
            label=DATA_SETS["digits-c16"].classes[labels[i]],
            case=f"case_{case:02d}",
            features_ND=features_ID[images_N],
            instance_labels_N=instance_labels_I[images_N].astype(np.uint8),
        )


def _digits_tcga(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    features_ID, digits_I = digit_images()
    cases = np.arange(NUM_TCGA_CASES)
    subtype_of_case = rng.permutation(cases % 2)
    cases_of_digit = [cases] * 10
    for subtype, digit in enumerate(SUBTYPE_DIGITS):
        cases_of_digit[digit] = cases[subtype_of_case == subtype]
    case_I = _deal(rng, digits_I, cases_of_digit)
    tumour_I = np.isin(digits_I, SUBTYPE_DIGITS)
    bag_sizes = c16_facts()["bag_sizes"]
    for case in cases:
        tumour_K = np.flatnonzero((case_I == case) & tumour_I)
        stroma_K = np.flatnonzero((case_I == case) & ~tumour_I)
        for i in range(rng.integers(1, 4)):
            size = max(MIN_POSITIVES, round(rng.choice(bag_sizes) * scale))
            num_tumour = max(1, round(rng.uniform(0.3, 0.8) * size))
            images_N = _draw_bag(rng, tumour_K, stroma_K, num_tumour, size)
            yield Slide(
                name=f"case_{case:03d}_slide_{i}",
                label=DATA_SETS["digits-tcga"].classes[subtype_of_case[case]],
                case=f"case_{case:03d}",
                features_ND=features_ID[images_N],
                instance_labels_N=tumour_I[images_N].astype(np.uint8),
            )


def _c16_shaped(rng: np.random.Generator, scale: float) -> Iterator[Slide]:
    for i, (label, size, num_positives) in enumerate(zip(*_c16_sizes(rng, scale), strict=True)):
        instance_labels_N = np.zeros(size, np.uint8)
        instance_labels_N[rng.choice(size, num_positives, replace=False)] = 1
        features_ND = rng.standard_normal((size, SHAPED_FEATURES), np.float32).astype(np.float16)
        features_ND[instance_labels_N == 1, :32] += 1
        yield Slide(
            name=f"synthetic_{i:03d}",
            label=DATA_SETS["c16-shaped"].classes[label],
            case=f"synthetic_case_{i:03d}",
            features_ND=features_ND,
            instance_labels_N=instance_labels_N,
        )


DATA_SETS = {
    "digits-c16": DataSet(
        classes=("normal", "tumor"),
        description="Real handwritten digits (4 x 4 pixels) in bags sampled with the sizes and positive "
        "fractions of CAMELYON16",
        synthetic=False,
        scale=1 / 20,
        draw=_digits_c16,
    ),
    "digits-tcga": DataSet(
        classes=("subtype_1", "subtype_8"),
        description="Real handwritten digits (4 x 4 pixels) in bags of two subtypes, several slides a case",
        synthetic=False,
        scale=1 / 20,
        draw=_digits_tcga,
    ),
    "c16-shaped": DataSet(
        classes=("normal", "tumor"),
        description="SYNTHETIC noise in bags of the sizes of CAMELYON16: for scale and I/O, not for accuracy",
        synthetic=True,
        scale=1.0,
        draw=_c16_shaped,
    ),
}


def write_features(
    name: str, out: Path, *, seed: int = 0, scale: float | None = None, bags: int | None = None
) -> None:
    """Write an embedded data set as a folder of features, the input of `data_prep.shard`.

    The folder appears whole or not at all. A slide is `out/features/SLIDE.npy` (float16, N x D) and
    `SLIDE.instance_labels.npy` (uint8, N); `out/labels.csv` has the columns slide, label, case. Equal
    arguments write equal bytes.

    Args:
        name: a key of `DATA_SETS`.
        out: folder to make; must not exist.
        seed: seed of every draw.
        scale: bag size relative to CAMELYON16's, above 0; each data set has its own default.
        bags: number of slides, if fewer than all.

    Raises:
        DataError: the data set is unknown, a number is not positive, or `out` exists.
    """
    if name not in DATA_SETS:
        raise DataError(f"no embedded data set is named {name!r}; expected one of {', '.join(DATA_SETS)}")
    data_set = DATA_SETS[name]
    scale = data_set.scale if scale is None else scale
    if scale <= 0:
        raise DataError(f"the scale of {name} must be above 0, got {scale}")
    if bags is not None and bags < 1:
        raise DataError(f"the number of bags of {name} must be at least 1, got {bags}")
    _refuse_to_overwrite(out)

    with appearing_whole(out) as folder, (folder / "labels.csv").open("w", newline="") as file:
        features = folder / "features"
        features.mkdir()
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["slide", "label", "case"])
        for slide in islice(data_set.draw(np.random.Generator(np.random.PCG64(seed)), scale), bags):
            np.save(features / f"{slide.name}.npy", slide.features_ND)
            np.save(features / f"{slide.name}.instance_labels.npy", slide.instance_labels_N)
            table.writerow([slide.name, slide.label, slide.case])


def build(
    name: str, out: Path, *, seed: int = 0, scale: float | None = None, bags: int | None = None
) -> Path:
    """Build an embedded data set as a folder of shards, whole or not at all, and return `out`.

    Args:
        name, seed, scale, bags: as in `write_features`.
        out: folder to make; must not exist. Its parent folder also holds the features until they are sharded.

    Raises:
        DataError: as in `write_features`.
    """
    _refuse_to_overwrite(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-building-") as folder:
        source = Path(folder) / "source"
        write_features(name, source, seed=seed, scale=scale, bags=bags)
        shard(
            source / "features",
            source / "labels.csv",
            out,
            name=name,
            classes=DATA_SETS[name].classes,
            description=DATA_SETS[name].description,
            synthetic=DATA_SETS[name].synthetic,
        )
    return out


def ensure(name_or_path: str, home: Path) -> Location:
    """Return the folder of a data set's shards; an embedded data set is built on the first request.

    Several processes may ask at once, also on several nodes with shared storage: one builds, the others wait.

    Args:
        name_or_path: a key of `DATA_SETS`, kept in `home/data/<name>`, or the path or URL of a folder of
            shards; a URL is returned as it is.
        home: see `mhimdist.files.home`.

    Raises:
        DataError: it is neither an embedded data set nor an existing folder.
    """
    if is_remote(name_or_path):
        return name_or_path
    if name_or_path not in DATA_SETS:
        path = Path(name_or_path).expanduser()
        if not path.is_dir():
            raise DataError(
                f"no data set {name_or_path!r}; expected a URL, an existing folder, or one of "
                f"{', '.join(DATA_SETS)}"
            )
        return path
    out = home / "data" / name_or_path
    if not out.is_dir():
        with Lock(out.parent / ".lock"):
            if not out.is_dir():  # another process may have built it while this one waited
                build(name_or_path, out)
    return out


def _refuse_to_overwrite(out: Path) -> None:
    if out.exists():
        raise DataError(f"{out} already exists; give another --out, or remove it")


def main() -> None:
    """Run the command: build one embedded data set.

    Raises:
        PreemptedError: SIGTERM, which `ray job stop` and batch systems send, ended it; nothing half-written
            stays.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.digits", description="Build an embedded data set as a folder of shards."
    )
    parser.add_argument(
        "name", choices=DATA_SETS, help="; ".join(f"{name}: {d.description}" for name, d in DATA_SETS.items())
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to make; required with any option below (default: data/NAME in MHIMDIST_HOME or "
        "~/mhimdist, reused if it exists)",
    )
    parser.add_argument("--seed", type=int, help="seed of every draw (default: 0)")
    parser.add_argument(
        "--scale",
        type=float,
        help="bag size relative to CAMELYON16's, above 0 (default: 0.05 for the digits; 1 for c16-shaped, "
        "which then takes 7.4 GB, and twice that while it is built)",
    )
    parser.add_argument("--bags", type=int, help="number of slides (default: all)")
    parser.add_argument(
        "--features-only",
        action="store_true",
        help="stop before sharding: make OUT/features/*.npy and OUT/labels.csv, the input of data_prep.shard",
    )
    arguments = parser.parse_args()
    options = {key: getattr(arguments, key) for key in ("seed", "scale", "bags")}
    options = {key: value for key, value in options.items() if value is not None}
    if arguments.out is None and (options or arguments.features_only):
        parser.error("--seed, --scale, --bags and --features-only need --out")
    with stoppable(arguments.out or arguments.name):
        if arguments.out is None:
            out = ensure(arguments.name, home())
        elif arguments.features_only:
            out = arguments.out
            write_features(arguments.name, out, **options)
        else:
            out = build(arguments.name, arguments.out, **options)
    say(f"{arguments.name}: {out}")


if __name__ == "__main__":
    run(main)
