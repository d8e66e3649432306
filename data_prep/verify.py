"""Check every byte of a data set, and repair it: `python -m data_prep.verify --help`."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from data_prep.checks.faults import Fault, verify
from data_prep.checks.repair import repair
from data_prep.command_line import read
from data_prep.options import Verification
from data_prep.shard_options import features_of
from data_prep.writing.progress import Count, bar
from mhimdist import terminal
from mhimdist.data.manifest import Manifest
from mhimdist.errors import ConfigError, CorruptShard
from mhimdist.process import run

MAX_LISTED = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        CorruptShard: the data set differs from its manifest; the differences are printed first.
    """
    verify_shards(read(Verification, arguments, "python -m data_prep.verify"))


def verify_shards(options: Verification) -> None:
    """Check a data set, say what was found, and repair it if that was asked for.

    Raises:
        CorruptShard: the data set differs from its manifest; the differences are printed first.
    """
    folder = options.folder
    started = time.perf_counter()
    manifest = Manifest.read(folder)
    info = manifest.info
    num_bytes = sum(shard.bytes for shard in info.shards)
    console = terminal.console()
    counted = Count()
    with bar(num_bytes, lambda: counted.total, "checking", terminal.progress()):
        faults = verify(folder, workers=options.workers, on_bytes=counted.add)
    _list(console, faults)
    if faults and options.repair is not None:
        repaired, faults = repair(
            folder,
            faults,
            _features(options.repair),
            stated=options.stated,
            workers=options.workers,
        )
        console.print(f"repaired: {', '.join(repaired) or 'nothing'}", style="green", soft_wrap=True)
        _list(console, faults, "not repaired: ")
    if faults:
        num_files = len({fault.file for fault in faults})
        raise CorruptShard(f"{folder} is not as it was written (faults: {len(faults)}, files: {num_files})")
    names = manifest.feature_sets
    num_bags = len(manifest.rows) // max(1, len(names))
    of_sets = f" in each of {len(names)} feature sets, {', '.join(names)}" if names else ""
    console.print(
        f"{folder}: {num_bags} bags{of_sets}, {decimal(num_bytes)} (shards: {len(info.shards)}): all as "
        f"written ({time.perf_counter() - started:.1f} s)",
        style="green",
        soft_wrap=True,
    )


def _features(given: Sequence[str]) -> Path | dict[str, Path]:
    """The features that `--repair` names.

    Raises:
        ConfigError: they are not named as `data_prep.shard` takes them.
    """
    try:
        features: Path | dict[str, Path] = features_of(list(given))
    except ValueError as error:
        raise ConfigError(f"--repair: {error}") from None
    return features


def _list(console: Console, faults: Sequence[Fault], what: str = "") -> None:
    for fault in faults[:MAX_LISTED]:
        console.print(f"{what}{fault}", style="red", soft_wrap=True)
    if len(faults) > MAX_LISTED:
        console.print(f"and {len(faults) - MAX_LISTED} more", soft_wrap=True)


if __name__ == "__main__":
    run(main)
