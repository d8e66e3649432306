"""What a report is about, read from its folder: a run, a cross-validation, the paper's tables, predictions.

Only JSON and Parquet are read; no network is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mhimdist import files
from mhimdist.comparison.entries import PREDICTION_FILE, PREDICTIONS, Entry, Network, read_entries
from mhimdist.errors import CheckpointError, ConfigError, ReportError
from mhimdist.report import formats
from mhimdist.report.summary import History
from mhimdist.statistics.curves import confusion, predicted_classes
from mhimdist.statistics.intervals import class_metrics
from mhimdist.statistics.metrics import Scores, auc, mean_and_std
from mhimdist.tasks import Judged, Task, restored

CASES = "cases.parquet"
Kind = Literal["run", "cross-validation", "paper tables", "predictions", "final runs"]


@dataclass(frozen=True)
class FoldRun:
    """One fold with one seed, as its folder describes it.

    Attributes:
        name: fold and seed in words.
        folder: where it is.
        history: a row per epoch; empty if there is none.
        config: its settings.
        result: what `result.json` holds; empty if it is not finished.
        split_sizes: the number of bags by the set's name.
    """

    name: str
    folder: Path
    history: History
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    split_sizes: Mapping[str, int]

    @property
    def validation(self) -> Scores | None:
        """Class scores of its validation bags; None if it has none, or an earlier release wrote it."""
        if not self.result.get("validation_keys") or not self.result["validation_probabilities"]:
            return None
        return Scores(
            np.array(self.result["validation_labels"], dtype=np.int64),
            np.array(self.result["validation_probabilities"], dtype=np.float64),
            self.result["validation_cases"],
        )

    @property
    def judged_validation(self) -> Judged | None:
        """Its validation bags as a task judges them; None if the result has none."""
        found, num = self.result, len(self.result.get("validation_keys", ()))
        if not num:
            return None
        predictions = found.get("validation_predictions") or found["validation_probabilities"]
        return Judged(
            np.array(found["validation_labels"], dtype=np.int64),
            np.array(found.get("validation_targets") or [[]] * num, dtype=np.float64),
            np.array(predictions, dtype=np.float64),
            found["validation_cases"],
        )


@dataclass(frozen=True)
class Configuration:
    """A configuration under one protocol, with its test scores and its folds.

    Attributes:
        name: its name in tables and figures.
        entry: its test scores; None if it was not tested.
        folds: its folds, in the order of the entry's networks; empty for predictions.
    """

    name: str
    entry: Entry | None
    folds: Sequence[FoldRun] = ()

    @property
    def networks(self) -> Sequence[Network]:
        """Its networks with test scores."""
        return self.entry.networks if self.entry else ()

    @property
    def task(self) -> Task | None:
        """What its networks predict; None for classes without an order, or if it was not tested."""
        return self.entry.task if self.entry else None

    @property
    def protocol(self) -> str:
        """The protocol of its figures; empty if it was not tested."""
        return self.entry.protocol if self.entry else ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes; numbers where the names are not known, none where labels are no classes."""
        if self.entry is None or (self.task is not None and not self.task.has_classes):
            return ()
        number = self.networks[0].scores.probabilities_NC.shape[1]
        return self.entry.classes or tuple(f"class {i}" for i in range(number))

    @property
    def is_binary(self) -> bool:
        """Whether it tells two classes apart that have no order."""
        return self.task is None and len(self.classes) == 2

    @property
    def parts(self) -> list[Scores]:
        """The test scores of each network."""
        return [network.scores for network in self.networks]

    @cached_property
    def predicted(self) -> list[np.ndarray]:
        """The class that each network calls each test bag, at its own threshold."""
        return [predicted_classes(each.scores.probabilities_NC, each.threshold) for each in self.networks]

    @cached_property
    def metrics(self) -> list[dict[str, float | None]]:
        """The metrics of each network on its test bags, at its threshold; of a task its own."""
        found: list[dict[str, float | None]] = []
        if self.task is not None:
            return [(each.task or self.task).metrics(each.judged, each.fitted) for each in self.networks]
        for part, predicted_N in zip(self.parts, self.predicted, strict=True):
            counts_CC = confusion(part.labels_N, predicted_N, part.probabilities_NC.shape[1])
            of_classes = {name: float(value[0]) for name, value in class_metrics(counts_CC[None]).items()}
            found.append({"auc": auc(part.labels_N, part.probabilities_NC), **of_classes})
        return found

    def spread(self, metric: str) -> tuple[float, float | None] | None:
        """Mean and deviation of a metric over the networks, formed as in the tables; None if undefined."""
        by_seed: dict[int | None, list[float]] = {}
        for network, metrics in zip(self.networks, self.metrics, strict=True):
            if (value := metrics.get(metric)) is not None:
                by_seed.setdefault(network.seed, []).append(value)
        return mean_and_std(list(by_seed.values())) if by_seed else None

    @property
    def histories(self) -> dict[str, History]:
        """The history of each fold that has one, by its name."""
        return {fold.name: fold.history for fold in self.folds if fold.history}

    @property
    def times_tested(self) -> int:
        """How often the most tested slide was tested: once per seed of a cross-validation."""
        counts: dict[str, int] = {}
        for network in self.networks:
            for key in network.keys:
                counts[key] = counts.get(key, 0) + 1
        return max(counts.values(), default=1)


@dataclass(frozen=True)
class Subject:
    """What a page reports on.

    Attributes:
        kind: what the folder is.
        path: the folder.
        configurations: in the order of its table.
        table: the record that its command wrote; empty if there is none.
        options: the options of that command.
        environment: the versions that it ran with, if its command recorded them.
        prediction: of predictions, what `prediction.json` holds.
        slides, cases: of predictions, the columns of `predictions.parquet` and of `cases.parquet`.
        paper: of the paper's tables, what `tables.json` holds.
    """

    kind: Kind
    path: Path
    configurations: Sequence[Configuration]
    table: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    prediction: Mapping[str, Any] = field(default_factory=dict)
    slides: Mapping[str, list[Any]] = field(default_factory=dict)
    cases: Mapping[str, list[Any]] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tested(self) -> list[Configuration]:
        """The configurations with test scores."""
        return [each for each in self.configurations if each.entry is not None]

    @property
    def task(self) -> Task | None:
        """What the networks predict; None for classes without an order.

        Raises:
            ReportError: the configurations are of different tasks.
        """
        found = [each.task for each in self.tested]
        if not found:
            return self._untested_task
        names = {"classification" if task is None else task.name for task in found}
        if len(names) > 1:
            raise ReportError(
                f"{self.path}: expected configurations of one task, got {', '.join(sorted(names))}: a page "
                "has the figures of one; give the folders of the folds"
            )
        return found[0]

    @cached_property
    def _untested_task(self) -> Task | None:
        """The task of predictions without a known truth, or of folds that were not tested."""
        results = [fold.result for each in self.configurations for fold in each.folds]
        records = [said.get("task") for said in (self.prediction, *results)]
        record = next(filter(None, records), None)
        try:
            return restored(record, ()) if record else None
        except (CheckpointError, ConfigError) as error:
            raise ReportError(f"{self.path}: {error}") from None

    @property
    def score(self) -> str:
        """The metric that selects, in words that fit an axis, such as "AUC"."""
        return "AUC" if self.task is None else self.task.title

    @property
    def selection(self) -> str:
        """The metric that selects, as results name it."""
        return "auc" if self.task is None else self.task.selection

    @property
    def protocols(self) -> list[str]:
        """The protocols of the tested configurations, in their order."""
        return list(dict.fromkeys(each.protocol for each in self.tested))

    @property
    def dataset(self) -> str:
        """The data set's name; empty if it is not known."""
        named = self.table.get("dataset") or self.prediction.get("data", {}).get("path", "")
        known = next((each.entry.dataset for each in self.configurations if each.entry), "")
        return str(named).rstrip("/").rpartition("/")[2] or known


def read_subject(run: str | Path) -> Subject:
    """Find out what a folder is, and read it.

    Args:
        run: the folder, or the name of a folder below `runs/` of `MHIMDIST_HOME`.

    Raises:
        ReportError: there is no such folder, or nothing in it that a report is made of.
        ComparisonError: its files cannot be read, or contradict each other.
    """
    path = _found(Path(run).expanduser())
    if (path / PREDICTIONS).exists():
        return _predictions(path)
    if (path / "history.jsonl").exists():
        fold = _fold(path)
        entry = next(iter(read_entries(path)), None) if fold.result.get("keys") else None
        options = _json(path.parent.parent / "options.json")
        found = Configuration(entry.name if entry else _model(fold.config), entry, [fold])
        environment = _json(path / "environment.json") or _json(path.parent.parent / "environment.json")
        return Subject("run", path, [found], options=options, environment=environment)
    holder = next((name for name in ("folds", "final") if (path / name).is_dir()), None)
    if holder is None:
        raise ReportError(
            f"{path}: expected a run (history.jsonl), a cross-validation or the paper's tables (folds/), a "
            f"sweep with final runs (final/), or predictions ({PREDICTIONS}); found none of them"
        )
    paper = _json(path / "tables.json")
    kind: Kind = "paper tables" if paper else "cross-validation" if holder == "folds" else "final runs"
    return Subject(
        kind,
        path,
        [_configuration(entry) for entry in read_entries(path)],
        table=paper.get("comparison", {}) or _json(path / "table.json"),
        options=_json(path / "options.json") or _json(path / "sweep.json"),
        environment=_json(path / "environment.json"),
        paper=paper,
    )


def _found(given: Path) -> Path:
    if (path := files.run_folder(given)) is None:
        raise ReportError(
            f"{given}: expected an existing folder, found none here, in {files.home()} or in its runs/"
        )
    return path


def _configuration(entry: Entry) -> Configuration:
    folds = [_fold(network.folder) for network in entry.networks if network.folder is not None]
    return Configuration(entry.name, entry, folds)


def _fold(folder: Path) -> FoldRun:
    config, result, split = (_json(folder / f"{name}.json") for name in ("config", "result", "split"))
    seed = result.get("seed", config.get("seed"))
    number = result.get("fold") or folder.name.removeprefix("fold-").partition("-")[0]
    return FoldRun(
        name=f"fold {number}, seed {seed}",
        folder=folder,
        history=_history(folder / "history.jsonl"),
        config=config,
        result=result,
        split_sizes={name: len(split.get(name, ())) for name in ("train", "validation", "test")},
    )


def _history(file: Path) -> History:
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = files.parse_json(line)
        except ValueError as error:
            raise ReportError(f"{file}, line {number}: expected the record of an epoch: {error}") from None
        if not isinstance(row, dict):
            raise ReportError(f"{file}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; empty if there is no such file."""
    return files.json_object(file, ReportError) if file.exists() else {}


def _model(config: Mapping[str, Any]) -> str:
    model = str(config.get("model", {}).get("name", "model"))
    has_teacher = config.get("teacher", {}).get("kind") not in (None, "none")
    return f"MHIM ({model})" if has_teacher else model


def _predictions(path: Path) -> Subject:
    prediction = _json(path / PREDICTION_FILE)
    classes, record = prediction.get("classes", []), prediction.get("task")
    needed = ["label", "predicted", *(f"probability_{name}" for name in classes)]
    task = restored(record, ()) if record else None
    of_targets = task is not None and not task.has_classes
    if task is not None and of_targets:
        needed = [*(f"true_{name}" for name in task.info.columns), *task.columns]
    slides = _columns(path / PREDICTIONS, ["slide", "case", *needed])
    has_cases = (path / CASES).exists()
    cases = _columns(path / CASES, ["case", "slides", *needed]) if has_cases else {}
    entry = None
    if of_targets:
        is_known = any(
            cell is not None for name in needed if name.startswith("true_") for cell in slides[name]
        )
    else:
        is_known = any(label in classes for label in slides["label"])
    if is_known:
        (entry,) = read_entries(path)
    found = Configuration(path.name, entry)
    return Subject("predictions", path, [found], prediction=prediction, slides=slides, cases=cases)


def _columns(file: Path, needed: Sequence[str]) -> dict[str, list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        columns: dict[str, list[Any]] = parquet.read_table(file).to_pydict()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ReportError(f"{file} cannot be read: {error}") from None
    if missing := [name for name in needed if name not in columns]:
        raise ReportError(f"{file}: expected the columns of a prediction, found no {', '.join(missing)}")
    return columns


def size_text(configuration: Configuration) -> str:
    """Folds, seeds and test slides in words."""
    if configuration.entry is None:
        return "not tested"
    slides = {key for network in configuration.networks for key in network.keys}
    return f"{configuration.entry.size.replace(' x ', ' × ')}, {formats.count(len(slides), 'test slide')}"
