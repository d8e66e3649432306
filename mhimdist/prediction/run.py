"""`predict`: models applied to slides, recorded as it goes, and written as tables."""

import os
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from mhimdist import files, terminal
from mhimdist.config.train import explain
from mhimdist.data.format import escape_key
from mhimdist.data.remote import Location, is_remote
from mhimdist.errors import CheckpointError, ConfigError, DataError, RunLockedError
from mhimdist.prediction.ensemble import Ensemble, Item, Predicted
from mhimdist.prediction.members import Member, find_members
from mhimdist.prediction.options import Prediction
from mhimdist.prediction.progress import counted
from mhimdist.prediction.records import RECORD_FILE, Records
from mhimdist.prediction.results import PREDICTION_FILE, Results
from mhimdist.prediction.scores import SCORES_FOLDER, ScoreWriter
from mhimdist.prediction.slides import Slides, open_slides
from mhimdist.prediction.sources import Bags
from mhimdist.prediction.verdicts import Threshold, threshold_of
from mhimdist.process import Stopping

T = TypeVar("T")
ITEMS_PER_SLICE = 64
"""Slides of a Ray task; a lost task predicts them again."""


def predict(
    models: str | Path | Sequence[str | Path], data: Location, out: str | Path, **options: Any
) -> Path:
    """Apply trained models to slides, and write predictions, their metrics and what the instances say.

    All networks of the folders vote together; the probabilities are their means. The same call resumes what a
    killed one left. The options are those of `jobs/predict.py`.

    Args:
        models: folder of a finished fold, of a cross-validation or of a sweep; or several of them.
        data: folder of shards, its URL, or a folder of feature files.
        out: folder to write.
        options: fields of `Prediction`, such as `labels`, `cases`, `scores` and `workers`.

    Returns:
        The folder, with `predictions.parquet`, `predictions.csv` and `prediction.json`.

    Raises:
        ConfigError: an option is invalid, or the models do not belong together.
        CheckpointError: a folder holds no trained model, or `out` holds other predictions.
        DataError: the features do not fit the models, or cannot be read; the message names the slide.
        LabelError: the labels are not classes of the models.
        NonFiniteError: the probabilities of a slide are not finite.
        RunLockedError: another process writes to `out`.
        PreemptedError: a SIGTERM stopped it; the same call resumes it.

    Example:
        >>> mh.predict("runs/train_c16", "features/", "predictions/", scores=True)  # doctest: +SKIP
    """
    folders = [models] if isinstance(models, (str, Path)) else models
    try:
        job = Prediction(models=tuple(map(Path, folders)), data=str(data), out=Path(out), **options)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(item) for item in error.errors())) from None
    return run_prediction(job, data=data)


def run_prediction(job: Prediction, *, data: Location) -> Path:
    """Predict as the options say.

    Args:
        job: the options.
        data: where the data are; it stands for `job.data`.

    Returns:
        The folder of the predictions.

    Raises:
        MhimdistError: see `predict`.
    """
    started, out = time.monotonic(), job.out.expanduser().resolve()
    if job.workers is not None:
        from mhimdist.cluster.connect import refuse_open_cluster  # Ray is heavy, and only workers need it

        refuse_open_cluster(insecure=job.insecure)
    members = find_members([_here_or_at_home(folder, job.home) for folder in job.models], job.candidate)
    slides = open_slides(data if is_remote(data) else Path(data), job, members[0])
    if (job.bag_of or members[0].bag_of) == "case":
        slides = slides.by_case()
    out.mkdir(parents=True, exist_ok=True)
    lock = files.Lock(out / ".lock", signed=True)
    if not lock.acquire(wait_s=0):
        raise RunLockedError(f"{out} is being written by {lock.holder}; wait, or give another --out")
    with lock, Stopping(f"{out} is not complete; run the same command again to resume it") as stopping:
        if job.fresh:
            _clear(out)
        results = _Task(job, out, members, slides).run(stopping)
        results.write(time.monotonic() - started)
    _say(results)
    return out


def _here_or_at_home(folder: Path, home: Path) -> Path:
    """A folder of models, which may be named as it is below the home folder, such as runs/train_c16."""
    return files.run_folder(folder, home) or folder


def _clear(out: Path) -> None:
    """Delete the predictions in a folder.

    Raises:
        CheckpointError: the folder holds something else.
    """
    others = [path for path in out.iterdir() if path.name != ".lock"]
    if others and not any(path.name in (RECORD_FILE, PREDICTION_FILE) for path in others):
        raise CheckpointError(f"{out} holds no predictions (no {RECORD_FILE}): --fresh does not delete it")
    shutil.rmtree(out / SCORES_FOLDER, ignore_errors=True)
    for name in (RECORD_FILE, PREDICTION_FILE):
        (out / name).unlink(missing_ok=True)
    for path in (*out.glob("predictions.*"), *out.glob("cases.*")):
        path.unlink()


@dataclass(frozen=True)
class _Task:
    """A prediction that is ready to run."""

    job: Prediction
    out: Path
    members: list[Member]
    slides: Slides

    def run(self, stopping: Stopping) -> Results:
        job, slides, members = self.job, self.slides, self.members
        threshold = threshold_of(members, job.threshold)
        items = [
            Item(slides.bag_of, name, key, group)
            for name, key, group in zip(slides.slides, slides.keys, slides.groups, strict=True)
        ]
        unions = {}
        if job.cases in ("union", "attention"):
            unions = {
                case: Item(
                    "case",
                    case,
                    escape_key(case),
                    tuple(slides.rows[place] for place in places),
                    how=job.cases,
                    is_scored=False,
                )
                for case, places in slides.several().items()
            }
        device = _device(job)
        identity = {
            "models": [member.digest for member in members],
            "data": slides.bags.digest if slides.bag_of == "slide" else f"cases of {slides.bags.digest}",
            "device": device,
        }
        records = Records(self.out / RECORD_FILE, identity)
        writer = None
        if job.scores:
            writer = self._writer(threshold)
            writer.claim(identity)
        todo = [
            item
            for item in (*items, *unions.values())
            if item.place not in records.probabilities
            or (writer is not None and item.is_scored and not writer.has(item))
        ]
        threads = job.threads or len(os.sched_getaffinity(0))
        ensemble = Ensemble(
            folders=tuple(member.folder for member in members),
            digests=tuple(member.digest for member in members),
            device=device,
            threads=threads,
            skip_bad=job.skip_bad,
        )
        failed = self._compute(_Work(ensemble, slides.bags, writer), todo, records, stopping)
        kept = [i for i, item in enumerate(items) if item.place in records.probabilities]
        if not kept:
            raise DataError(f"no slide could be predicted; the first: {next(iter(failed.values()))}")
        return Results(
            out=self.out,
            job=job,
            members=tuple(members),
            slides=slides,
            threshold=threshold,
            places=tuple(kept),
            probabilities_NMC=np.stack(
                [_aligned(records.probabilities[items[i].place], members) for i in kept]
            ),
            unions={
                case: _aligned(records.probabilities[item.place], members)
                for case, item in unions.items()
                if item.place in records.probabilities
            },
            failed=failed,
            device=device,
        )

    def _writer(self, threshold: Threshold) -> ScoreWriter:
        slides = self.slides
        return ScoreWriter(
            folder=self.out / SCORES_FOLDER,
            bags=slides.bags,
            labels=_by_row(slides.groups, slides.labels),
            cases=_by_row(slides.groups, slides.cases),
            task=self.members[0].task,
            threshold=threshold,
            encoder=slides.encoder,
            patch_size=self.job.patch_size,
            models=[str(member.folder) for member in self.members],
            warnings=slides.warnings,
        )

    def _compute(
        self, work: "_Work", todo: Sequence[Item], records: Records, stopping: Stopping
    ) -> dict[str, str]:
        """Predict what is left, and return why items failed, by name."""
        if not todo:
            return {}
        failed = {}
        total = max(len(self.slides), len(todo))
        with (
            records.appending() as appender,
            counted(total, total - len(todo)) as advance,
            stopping.gently(),
            closing(self._outcomes(work, todo, stopping)) as outcomes,
        ):
            for predicted in outcomes:
                appender.add(predicted)
                if predicted.error:
                    failed[predicted.item.name] = predicted.error
                advance()
                if stopping.is_asked:
                    break
        if stopping.is_asked:
            raise KeyboardInterrupt  # which `stopping` makes a PreemptedError of if the signal was a SIGTERM
        return failed

    def _outcomes(self, work: "_Work", todo: Sequence[Item], stopping: Stopping) -> Generator[Predicted]:
        if self.job.workers is None:
            yield from work.ensemble.predict(work.bags, todo, work.keep)
            return
        from mhimdist.distributed.slices import in_slices

        slices = [todo[i : i + ITEMS_PER_SLICE] for i in range(0, len(todo), ITEMS_PER_SLICE)]
        with closing(
            in_slices(
                partial(_in_task, work),
                slices,
                workers=self.job.workers,
                gpus_per_worker=0.0 if work.ensemble.device == "cpu" else self.job.gpus_per_worker,
                is_stopped=lambda: stopping.is_asked,
            )
        ) as done:
            for outcomes in done:
                yield from outcomes


def _aligned(predictions_MP: np.ndarray, members: Sequence[Member]) -> np.ndarray:
    """The predictions of an item by every network, as the first network means them."""
    first = members[0].task
    rows = zip(predictions_MP, members, strict=True)
    return np.concatenate([member.task.aligned(row_P[None], first) for row_P, member in rows])


def _by_row(groups: Sequence[Sequence[int]], values: Sequence[T]) -> dict[int, T]:
    """The value of each bag, by the rows of its slides."""
    return {row: value for group, value in zip(groups, values, strict=True) for row in group}


@dataclass(frozen=True)
class _Work:
    """All that a process needs to predict a slice."""

    ensemble: Ensemble
    bags: Bags
    keep: ScoreWriter | None


def _in_task(work: _Work, items: Sequence[Item]) -> list[Predicted]:
    ensemble = replace(work.ensemble, threads=1)  # a task has one core
    return list(ensemble.predict(work.bags, items, work.keep))


def _device(job: Prediction) -> str:
    """Where the networks compute."""
    if job.device != "auto":
        if job.device == "cuda" and job.workers is None and not torch.cuda.is_available():
            raise ConfigError("device: cuda was asked for, but torch finds no GPU; give --device cpu")
        return job.device
    if job.workers is not None:
        from mhimdist.cluster.connect import has_gpus

        return "cuda" if has_gpus() else "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _say(results: Results) -> None:
    console = terminal.console()
    for line in results.lines():
        console.print(line, soft_wrap=True)
