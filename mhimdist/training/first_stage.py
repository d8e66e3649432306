"""The first of two stages: the network trained without masking, from which an "init" teacher starts.

It is trained once per configuration, split, seed and data set, and found again by a hash of all of them.
Alternatively, it is read from a checkpoint that the authors released, see `requirements.outside_network`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhimdist import files
from mhimdist.config.execution import Saving
from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.errors import CheckpointError, PreemptedError
from mhimdist.method.precision import compute_dtype
from mhimdist.models import BagModel
from mhimdist.training import checkpoint
from mhimdist.training.evaluation import PREDICTIONS, Predictions, stacked, unstacked
from mhimdist.training.history import EpochRecord
from mhimdist.training.network import network_for
from mhimdist.training.requirements import outside_network
from mhimdist.training.trainer import Trainer, device_of
from mhimdist.training.workers import Workers

RECIPE_VERSION = 4
"""Increased when training itself changes, so that no network of an older release counts as a current one."""


def made_with(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The settings, software and hardware that a network depends on, as JSON's types.

    Args:
        config: the run's settings.
        device: the device on which it trains, whatever `auto` means elsewhere.
    """
    dtype = str(compute_dtype(config.precision, device))
    recipe = config.recipe() | {"device": device.type, "precision": dtype}
    return {"recipe_version": RECIPE_VERSION, "config": recipe}


@dataclass(frozen=True)
class FirstStage:
    """A network trained without masking.

    Attributes:
        network: the student of the selected epoch.
        best_epoch: the selected epoch, counted from 0.
        history: a record per epoch of training.
        predictions: for the validation bags after each epoch; None if they are not known.
    """

    network: BagModel
    best_epoch: int
    history: Sequence[EpochRecord]
    predictions: Sequence[Predictions] | None = None


def open_trainer(
    config: TrainConfig,
    bags: BagSource,
    split: Split,
    folder: Path | None = None,
    cache: Path | None = None,
    *,
    workers: Workers | None = None,
    saving: Saving | None = None,
    stop: Callable[[], bool] = lambda: False,
    num_epochs: int | None = None,
    num_stage_epochs: int | None = None,
    keeps_predictions: bool = False,
) -> Trainer:
    """Build a trainer; its first stage, if the configuration needs one, is trained or found before.

    Args:
        config: the run's settings.
        bags: the data set.
        split: the bags that train, select and test.
        folder: receives the run, which a later call with the same arguments resumes; None writes nothing.
        cache: folder of first-stage networks; None: `cache/first_stage` under `mhimdist.files.home()`.
        workers, saving, stop: as in `Trainer`, for both stages.
        num_epochs, num_stage_epochs: as `num_epochs` in `Trainer`, for the run and for its first stage.
        keeps_predictions: as in `Trainer`.

    Raises:
        ConfigError: the class weights are not one per class.
        SplitError: the split does not fit the data.
        CheckpointError: the folder belongs to another run or is damaged, or `teacher.weights` do not fit.
        RunLockedError: another process trains in the folder.
    """
    cache = cache or files.home() / "cache" / "first_stage"
    pretrained = None
    if config.teacher.is_pretrained and config.teacher.weights is not None:
        pretrained = outside_network(config, bags)
    elif config.teacher.is_pretrained:
        stage = first_stage(
            config,
            bags,
            split,
            cache,
            workers=workers,
            saving=saving,
            stop=stop,
            num_epochs=num_stage_epochs,
        )
        pretrained = stage.network
    return Trainer(
        config,
        bags,
        split,
        folder,
        pretrained=pretrained,
        workers=workers,
        saving=saving,
        stop=stop,
        num_epochs=num_epochs,
        keeps_predictions=keeps_predictions,
    )


def first_stage(
    config: TrainConfig,
    bags: BagSource,
    split: Split,
    cache: Path,
    *,
    workers: Workers | None = None,
    saving: Saving | None = None,
    stop: Callable[[], bool] = lambda: False,
    num_epochs: int | None = None,
    needs_predictions: bool = False,
) -> FirstStage:
    """The network of the selected epoch of `config.first_stage()`, from the cache or trained now.

    A second process that asks for the same network waits for the first one. Interrupted training resumes
    from its last checkpoint. A damaged network in the cache is trained again.

    Args:
        config: the configuration of the second stage, or of a run that has only one.
        bags: the data set.
        split: its training and validation bags count; its test bags are not used.
        cache: folder of first-stage networks, shared by all runs.
        workers, saving, stop, num_epochs: as in `Trainer`.
        needs_predictions: whether the predictions after each epoch must be there; a network of an earlier
            release, which did not keep them, is then trained again.

    Raises:
        PreemptedError: the run was asked to stop, in training or while it waited for another process.
        MhimdistError: see `Trainer` and `Trainer.epochs`.
    """
    workers = workers or Workers()
    stage = config.first_stage()
    text = _made_of(stage, bags, split, num_epochs)
    folder = cache / hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
    network = network_for(stage, bags, split)
    is_first = workers.rank == 0  # the only worker that holds the lock and writes
    with _locked(folder.with_suffix(".lock"), workers, stop):
        found = workers.from_first(_load(folder, text, needs_predictions) if is_first else None)
        if found is None:
            unfinished = folder.with_suffix(".run")
            trainer = Trainer(
                stage,
                bags,
                split,
                unfinished,
                workers=workers,
                saving=saving,
                stop=stop,
                num_epochs=num_epochs,
                keeps_predictions=num_epochs is None,
            )
            for _ in trainer.epochs():
                pass
            found = _made(trainer, text)
            if is_first:
                checkpoint.save(folder, *found)
                shutil.rmtree(unfinished)
    tensors, state = found
    network.load_state_dict(tensors["student"])
    records = [EpochRecord.read(record, folder) for record in state["history"]]
    known = (
        unstacked(tensors[PREDICTIONS], split.validation, network.task) if PREDICTIONS in tensors else None
    )
    return FirstStage(network, state["best_epoch"], records, known)


def _made_of(stage: TrainConfig, bags: BagSource, split: Split, num_epochs: int | None) -> str:
    """Everything that a first stage is made of, as JSON."""
    made_of = {
        **made_with(stage, device_of(stage.device)),
        "data": bags.digest,
        "train": split.train,
        "validation": split.validation,
        **({"num_epochs": num_epochs} if num_epochs else {}),
    }
    return json.dumps(made_of, sort_keys=True)


def _made(trainer: Trainer, made_of: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What the cache holds of a first stage that has just ended."""
    tensors = {"student": trainer.best_student().cpu().state_dict()}
    if trainer.run.predictions:
        tensors[PREDICTIONS] = stacked(trainer.run.predictions)
    history = [asdict(record) for record in trainer.history]
    return tensors, {"made_of": made_of, "best_epoch": trainer.best.epoch, "history": history}


@contextmanager
def _locked(path: Path, workers: Workers, stop: Callable[[], bool]) -> Iterator[None]:
    """Hold a lock in worker 0; a stop ends the wait for it in all workers."""
    lock = files.Lock(path)
    if workers.rank == 0:
        while not lock.acquire(wait_s=0.5) and not stop():
            pass
    try:
        if not workers.from_first(lock.is_held and not stop()):
            raise PreemptedError(
                f"stopped before the first stage {path.stem} was there; run the same command again to resume"
            )
        yield
    finally:
        lock.release()


def _load(
    folder: Path, made_of: str, needs_predictions: bool
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Read a network from the cache; if it is missing, damaged or another one, delete it and return None."""
    try:
        tensors, state = checkpoint.load(folder)
        if state.get("made_of") != made_of:
            raise CheckpointError(f"{folder} holds the network of another run")
        if needs_predictions and PREDICTIONS not in tensors:
            raise CheckpointError(f"{folder}: an earlier release made it, without predictions")
    except CheckpointError:
        checkpoint.discard(folder)
        return None
    return tensors, state
