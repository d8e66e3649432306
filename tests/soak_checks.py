"""What a soak requires of the folders that disturbed runs leave."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from optuna.trial import TrialState

from mhimdist.config.execution import Saving
from mhimdist.search import storage
from mhimdist.training import checkpoint
from mhimdist.training.run_folder import RunFolder

TIMES = {"train_s", "epoch_s"}
MOST_GROWTH_BYTES = 48 * 2**20


class Broken(Exception):
    """A promise is broken."""


def rows(path: Path) -> list[dict]:
    """The lines of a JSON file, without the last one if a kill has torn it."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def notes(path: Path) -> list[dict]:
    """What `soak_run` noted, without the lines that a kill or a full disk has torn."""
    found = []
    for line in path.read_text().split("\n") if path.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def history(folder: Path) -> list[dict]:
    """A run's epochs without their times.

    Raises:
        Broken: an epoch is missing, doubled or out of order.
    """
    found = [{k: v for k, v in row.items() if k not in TIMES} for row in rows(folder / "history.jsonl")]
    if [row["epoch"] for row in found] != list(range(len(found))):
        raise Broken(f"{folder}: the epochs of its history are {[row['epoch'] for row in found]}")
    return found


def bags_of_epochs(folder: Path, expected: set[str]) -> None:
    """Require that each finished epoch saw every bag once, and that repeated steps saw the same bags.

    Raises:
        Broken: a bag is lost, doubled or moved.
    """
    seen: dict[tuple[int, int], list[str]] = {}
    for row in notes(Path(f"{folder}.steps")):
        before = seen.setdefault((row["epoch"], row["step"]), row["keys"])
        if before != row["keys"]:
            raise Broken(f"{folder}: epoch {row['epoch']} step {row['step']}: {before}, then {row['keys']}")
    for epoch in range(len(history(folder))):
        keys = [key for (e, _), each in seen.items() if e == epoch for key in each]
        if sorted(keys) != sorted(expected):
            raise Broken(f"{folder}: epoch {epoch} saw {len(keys)} bags, {len(set(keys))} distinct")


def is_flat(folder: Path) -> None:
    """Require that memory, open files and threads of each process stayed flat after its third epoch.

    Raises:
        Broken: they grew.
    """
    by_process: dict[int, list[dict]] = {}
    for row in notes(Path(f"{folder}.process")):
        by_process.setdefault(row["pid"], []).append(row)
    for pid, found in by_process.items():
        later = found[3:]
        if not later:
            continue
        if later[-1]["rss"] > later[0]["rss"] + MOST_GROWTH_BYTES:
            raise Broken(f"{folder}: process {pid} grew from {later[0]['rss']} to {later[-1]['rss']} bytes")
        for what in ("files", "threads"):
            numbers = [row[what] for row in later]
            if numbers[-1] > min(numbers) + 2:
                raise Broken(f"{folder}: process {pid} has ever more {what}: {numbers}")


def same_training(folder: Path, reference: Path, *, is_finished: bool) -> None:
    """Require that a run's history is the beginning of another's, and that finished ones are the same.

    Raises:
        Broken: they differ.
    """
    mine, theirs = history(folder), history(reference)
    if mine != theirs[: len(mine)]:
        first = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b)
        raise Broken(f"{folder}: epoch {first} is {mine[first]}, undisturbed {theirs[first]}")
    if is_finished and (len(mine) != len(theirs) or _end(folder) != _end(reference)):
        raise Broken(f"{folder}: the networks at the end differ from those of {reference}")


def _end(folder: Path) -> str:
    latest = RunFolder(folder, {}, Saving()).latest()
    if latest is None:
        raise Broken(f"{folder}: no checkpoint at its end")
    return _digest(latest[0])


def _digest(tensors: dict) -> str:
    digest = hashlib.sha256()
    for name, group in sorted(tensors.items()):
        for key, value in sorted(group.items()):
            digest.update(f"{name}/{key}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def _trials(folder: Path) -> list[tuple]:
    found = storage.read(storage.sqlite_url(folder / "study.db"), folder.name)
    if [trial.number for trial in found] != list(range(len(found))):
        raise Broken(f"{folder}: the trials are {[trial.number for trial in found]}")
    params = [json.dumps(trial.params, sort_keys=True) for trial in found]
    if len(set(params)) != len(params):
        raise Broken(f"{folder}: a configuration was tried twice")
    if any(trial.state != TrialState.COMPLETE for trial in found):
        raise Broken(f"{folder}: trials ended as {[trial.state.name for trial in found]}")
    return [(trial.params, trial.value, trial.intermediate_values) for trial in found]


def same_sweep(folder: Path, reference: Path) -> None:
    """Require that two finished sweeps have the same trials, the same final results and the same networks.

    Raises:
        Broken: they differ.
    """
    if _trials(folder) != _trials(reference):
        raise Broken(f"{folder}: the trials differ from those of {reference}")
    for runs in ("trials/*", "final"):
        names = [sorted(p.name for p in each.glob(f"{runs}/fold-*")) for each in (folder, reference)]
        if names[0] != names[1]:
            raise Broken(f"{folder}: the folds are {names[0]}, undisturbed {names[1]}")
        for fold in sorted(reference.glob(f"{runs}/fold-*")):
            mine = folder / fold.relative_to(reference)
            if history(mine) != history(fold):
                raise Broken(f"{mine}: its history differs from the undisturbed one")
            if _digest(checkpoint.load(mine / "best_student")[0]) != _digest(
                checkpoint.load(fold / "best_student")[0]
            ):
                raise Broken(f"{mine}: its network differs from the undisturbed one")
