"""Make shards of a classic benchmark of multiple-instance learning: `python -m data_prep.classic --help`."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_prep.command_line import read, stoppable
from data_prep.options import Classic
from data_prep.readers.classic import packaged, read_classic
from data_prep.shard import shard
from mhimdist.errors import DataError
from mhimdist.files import Lock, home
from mhimdist.foreign_text import say
from mhimdist.process import run


@dataclass(frozen=True)
class Benchmark:
    """A classic data set.

    Attributes:
        classes: the negative and the positive class.
        num_features: width of an instance.
        num_bags, num_positive: all bags, and the positive ones.
        description: what its bags and instances are.
    """

    classes: tuple[str, str]
    num_features: int
    num_bags: int
    num_positive: int
    description: str


_MUSK = "Molecules (bags) in their conformations (instances), UCI Musk version {} (Chapman, Jain; CC BY 4.0)"
_UCSB = "Breast-cancer images (bags) in patches (instances), UCSB"
BENCHMARKS = {
    "musk1": Benchmark(("other", "musk"), 166, 92, 47, _MUSK.format(1)),
    "musk2": Benchmark(("other", "musk"), 166, 102, 39, _MUSK.format(2)),
    "elephant": Benchmark(
        ("other", "elephant"),
        230,
        200,
        100,
        "Corel images (bags) in segments (instances)",
    ),
    "ucsb_breast_cancer": Benchmark(("benign", "malignant"), 708, 58, 26, _UCSB),
}


def build(name: str, out: Path, *, file: Path | None = None, standardize: bool = True) -> Path:
    """Make a folder of shards of a classic benchmark, and return `out`.

    Args:
        name: a key of `BENCHMARKS`.
        out: folder to make; must not exist.
        file: UCI's file, or a CSV file as the package `mil` has it; None for that of the installed package.
        standardize: standardise every feature over all bags, as the published protocols do; no label is used,
            but the bags that a fold tests count in mean and deviation.

    Raises:
        ConfigError: no file was given, and the package is not installed.
        DataError: the file is damaged or of another data set, or `out` exists.
    """
    benchmark = BENCHMARKS[name]
    path = file or packaged(name)
    bags = read_classic(path)
    got = len(bags), sum(bag.is_positive for bag in bags), bags[0].features_ND.shape[1]
    expected = benchmark.num_bags, benchmark.num_positive, benchmark.num_features
    if got != expected:
        raise DataError(
            f"{path}: expected {name} with {expected[0]} bags, {expected[1]} of them positive, and "
            f"{expected[2]} features, got {got[0]}, {got[1]} and {got[2]}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-building-") as temporary:
        features, table = Path(temporary) / "features", Path(temporary) / "labels.csv"
        features.mkdir()
        with table.open("w", newline="", encoding="utf-8") as lines:
            rows = csv.writer(lines, lineterminator="\n")
            rows.writerow(("slide", "label", "case"))
            for bag in bags:
                slide = f"{name}-{bag.name}"  # the package numbers its bags
                np.save(features / f"{slide}.npy", bag.features_ND)
                rows.writerow((slide, benchmark.classes[bag.is_positive], bag.name))
        shard(
            features,
            table,
            out,
            name=name,
            classes=benchmark.classes,
            description=benchmark.description,
            dtype="float32",
            standardize=standardize,
        )
    return out


def ensure(name: str, folder: Path, *, file: Path | None = None) -> Path:
    """The shards of a benchmark in `folder/data/<name>`, made on the first request.

    Raises:
        ConfigError, DataError: as in `build`.
    """
    out = folder / "data" / name
    if not out.is_dir():
        with Lock(out.parent / ".lock"):
            if not out.is_dir():  # another process may have built it while this one waited
                build(name, out, file=file)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        PreemptedError: SIGTERM ended it; nothing half-written stays.
    """
    build_classic(read(Classic, arguments, "python -m data_prep.classic"))


def build_classic(options: Classic) -> None:
    """Make the shards of a benchmark, and say where they are.

    Raises:
        PreemptedError: SIGTERM ended it; nothing half-written stays.
        ConfigError, DataError: see `build`.
    """
    out = options.out or home() / "data" / options.name
    with stoppable(out):
        build(options.name, out, file=options.file, standardize=not options.raw)
    say(f"{options.name}: {out}")


if __name__ == "__main__":
    run(main)
