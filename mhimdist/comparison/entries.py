"""What can be compared, read from its folder: the test scores of every network of a configuration.

A folder is a finished fold, a cross-validation, a sweep with final runs, or a folder of predictions. Only
JSON and Parquet are read; no network is loaded.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mhimdist import files
from mhimdist.comparison.networks import Network, Said, scores_of
from mhimdist.config.options import leaves
from mhimdist.errors import ComparisonError
from mhimdist.report import formats
from mhimdist.tasks import Task

__all__ = ["PREDICTIONS", "PREDICTION_FILE", "Entry", "Network", "read_entries", "settings_digest"]

PREDICTIONS, PREDICTION_FILE = "predictions.parquet", "prediction.json"
_RESULT, _TABLE, _PAPER = "result.json", "table.json", "tables.json"
_OF_FOLDS = ("folds", "final")
"""Where a cross-validation and a sweep have the folders of their folds."""
_NEEDED = (
    *("protocol", "seed", "fold", "config_digest", "split_digest", "data_digest", "test"),
    *("keys", "cases", "labels", "probabilities"),
)
_IGNORED = ("seed", "device")
"""Settings that do not tell two configurations apart."""


@dataclass(frozen=True)
class Entry:
    """One side of a comparison: a configuration under one protocol.

    Attributes:
        name: its name in tables.
        folder: where it was read.
        networks: its networks, by seed, then fold.
        settings: its settings by dotted path, without seed and device; of predictions, what their networks
            have in common and how they vote, as far as the predictions record it.
        protocol: "strict", "paper", "refit", "nested", or what made an ensemble.
        data_digest: digest of the data set that its slides are of.
        dataset: the data set's name.
        classes: the names of its classes; empty if they are not known, or if its labels are none.
        notes: what a reader of its figures must know.
    """

    name: str
    folder: Path
    networks: tuple[Network, ...]
    settings: Mapping[str, object]
    protocol: str
    data_digest: str
    dataset: str
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def features(self) -> str | None:
        """The feature set that it was trained on, if the data set names its sets."""
        return None if (name := self.settings.get("features")) is None else str(name)

    @property
    def task(self) -> Task | None:
        """What its networks predict; None for classes without an order."""
        return self.networks[0].task

    @property
    def num_seeds(self) -> int:
        """The number of different seeds."""
        return len({network.seed for network in self.networks})

    @property
    def num_folds(self) -> int:
        """The most folds of any seed."""
        seeds = [network.seed for network in self.networks]
        return max(seeds.count(seed) for seed in set(seeds))

    @property
    def size(self) -> str:
        """Folds and seeds in words."""
        if all(network.fold is None for network in self.networks):
            return "predictions"
        return f"{formats.count(self.num_folds, 'fold')} x {formats.count(self.num_seeds, 'seed')}"


def read_entries(run: str | Path) -> list[Entry]:
    """The configurations in a folder.

    Args:
        run: the folder, or the name of a folder below `runs/` of `MHIMDIST_HOME`. `folder::name` takes one of
            several configurations, by its name or the start of its digest.

    Raises:
        ComparisonError: the folder holds nothing that was tested, or no configuration of this name.
    """
    folder, _, wanted = str(run).partition("::")
    path = _found(folder)
    if (path / PREDICTIONS).exists():
        return [_prediction(path)]
    if (path / _RESULT).exists() and "keys" in _json(path / _RESULT):
        return _configurations(path, [path], {})
    holder = next((path / name for name in _OF_FOLDS if (path / name).is_dir()), path)
    folds = sorted(each.parent for each in holder.glob(f"fold-*/{_RESULT}"))
    if not folds:
        raise ComparisonError(
            f"{path}: expected a finished fold, a cross-validation, a sweep with final runs or a folder of "
            f"predictions, found no fold-*/{_RESULT} and no {PREDICTIONS}"
        )
    entries = _configurations(path, folds, _table(path))
    return [entry for entry in entries if not wanted or _is_named(entry, wanted)] or _refuse(
        path, wanted, entries
    )


def _table(path: Path) -> Mapping[str, Any]:
    """The table of a cross-validation or of the paper's tables; empty if its command wrote none."""
    if (path / _TABLE).exists():
        return _json(path / _TABLE)
    return _json(path / _PAPER).get("comparison", {}) if (path / _PAPER).exists() else {}


def _refuse(path: Path, wanted: str, entries: Sequence[Entry]) -> list[Entry]:
    names = ", ".join(entry.name for entry in entries)
    raise ComparisonError(f"{path} holds no configuration {wanted!r}; it has {names}")


def _is_named(entry: Entry, wanted: str) -> bool:
    return entry.name == wanted or entry.name.rpartition(" ")[2].startswith(wanted)


def _found(folder: str) -> Path:
    if (path := files.run_folder(folder)) is None:
        raise ComparisonError(
            f"{folder}: expected an existing folder, found none here, in {files.home()} or in its runs/"
        )
    return path


def _json(path: Path) -> dict[str, Any]:
    return files.json_object(path, ComparisonError)


def _configurations(path: Path, folders: Sequence[Path], table: Mapping[str, Any]) -> list[Entry]:
    """The configurations that the folds of a folder belong to, in the order of its table if it has one."""
    # Rows of equal configurations share their folds, so a fold may belong to several rows.
    known: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for number, row in enumerate(table.get("rows", ())):
        for result in row["results"]:
            key = (result["config_digest"], result["split_digest"], row["protocol"])
            known.setdefault(key, []).append((number, row["name"]))
    groups: dict[tuple[Any, ...], list[tuple[Network, Mapping[str, Any], Mapping[str, Any], Path]]] = {}
    for folder in folders:
        result, config = _json(folder / _RESULT), _json(folder / "config.json")
        network = _network(folder, result)
        if network is None:
            continue
        names = known.get((result["config_digest"], result["split_digest"], result["protocol"]), [])
        if known and not names:
            continue  # an earlier command with other options trained it
        settings = _settings(config)
        for kind in names or [(len(known), json.dumps(settings, sort_keys=True))]:
            groups.setdefault((*kind, result["protocol"]), []).append((network, result, settings, folder))
    if not groups:
        raise ComparisonError(
            f"{path}: its folds were not tested, as a search tests none; give a cross-validation, or a sweep "
            "for its final runs"
        )
    dataset = _dataset(path, table)
    rows = {(row["name"], row["protocol"]): row for row in table.get("rows", ())}
    # By the number in the table, or in the order of the folders.
    ordered = sorted(groups.items(), key=lambda item: item[0][0])
    return _unique([_entry(path, group, dataset, key, rows) for key, group in ordered])


def _entry(
    path: Path,
    group: Sequence[tuple[Network, Mapping[str, Any], Mapping[str, Any], Path]],
    dataset: str,
    key: tuple[Any, ...],
    rows: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Entry:
    _, first, settings, folder = group[0]
    networks = sorted((each[0] for each in group), key=lambda n: (n.seed or 0, n.fold or 0))
    places = [(network.seed, network.fold) for network in networks]
    if len(set(places)) < len(places):
        raise ComparisonError(
            f"{path}: expected one split per fold and seed, got several; name a folder with the folds of one "
            "command, or run that command again to write its table.json"
        )
    digests = {result["data_digest"] for _, result, _, _ in group}
    chosen = list(dict.fromkeys(each.get("features") for _, _, each, _ in group))
    if len(chosen) > 1:  # the outer folds of a nested sweep chose other features of the same slides
        settings = {**settings, "features": " or ".join(sorted(map(str, chosen)))}
    elif len(digests) > 1:
        raise ComparisonError(f"{path}: its folds are of {len(digests)} data sets: {', '.join(digests)}")
    row = rows.get((key[1], first["protocol"]), {})
    notes = {result.get("note", "") for _, result, _, _ in group}
    if row.get("runs") != row.get("runs_planned"):
        notes.add(f"{row['runs']} of {row['runs_planned']} runs are finished")
    return Entry(
        name=key[1] if row else _name(settings),
        folder=path,
        networks=tuple(networks),
        settings=settings,
        protocol=first["protocol"],
        data_digest=first["data_digest"],
        dataset=dataset or f"data set {first['data_digest'][:8]}",
        classes=_classes(folder) if networks[0].targets_NK is None else (),
        notes=tuple(sorted(filter(None, notes))),
    )


def _network(folder: Path, result: Mapping[str, Any]) -> Network | None:
    """The test scores of a fold; None if it was not tested."""
    file = folder / _RESULT
    if missing := [name for name in _NEEDED if name not in result]:
        raise ComparisonError(f"{file} is not a result of this release: it has no {', '.join(missing)}")
    if not result["keys"]:
        return None
    split = _json(folder / "split.json")
    said = Said.of(file, result.get("task"))
    predictions = result["probabilities"] or result.get("predictions", ())
    scores = scores_of(file, result["keys"], result["labels"], predictions, result["cases"], said.task)
    return Network(
        keys=tuple(result["keys"]),
        scores=scores,
        threshold=result["test"].get("threshold"),
        fold=result["fold"],
        seed=result["seed"],
        num_train=len(split.get("train", ())),
        num_test=len(result["keys"]),
        folder=folder,
        task=said.task,
        targets_NK=said.targets(file, result.get("targets", ()), len(result["keys"])),
        fitted=said.fitted,
    )


def _settings(config: Mapping[str, Any]) -> dict[str, object]:
    """The settings that tell configurations apart; the weights of a teacher may be another file per fold."""
    flat = {path: value for path, value in leaves(config) if path not in _IGNORED}
    if flat.get("teacher.weights") is not None:
        flat["teacher.weights"] = "one per run"
    return flat


def _name(settings: Mapping[str, object]) -> str:
    model = str(settings.get("model.name", "model"))
    name = model if settings.get("teacher.kind") in (None, "none") else f"MHIM ({model})"
    return name if settings.get("features") is None else f"{name}, {settings['features']}"


def _unique(entries: list[Entry]) -> list[Entry]:
    """Tell configurations of one name and protocol apart by what their settings hash to."""
    named = [(entry.name, entry.protocol) for entry in entries]
    return [
        replace(entry, name=f"{entry.name} {settings_digest(entry.settings)}")
        if named.count((entry.name, entry.protocol)) > 1
        else entry
        for entry in entries
    ]


def settings_digest(settings: Mapping[str, object]) -> str:
    """Six hex digits that tell settings apart."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=3).hexdigest()


def _dataset(path: Path, table: Mapping[str, Any]) -> str:
    """The data set's name, from the table or from the options of the command; "" if neither is there."""
    if "dataset" in table:
        return str(table["dataset"])
    for folder in (path, path.parent, path.parent.parent):
        for name in ("options.json", "sweep.json"):
            if (folder / name).exists():
                return Path(str(_json(folder / name).get("data", ""))).name
    return ""


def _classes(folder: Path) -> tuple[str, ...]:
    """The classes of a fold, as its student's description has them."""
    state = folder / "best_student" / "state.json"
    return tuple(_json(state).get("state", {}).get("classes", ())) if state.exists() else ()


def _prediction(path: Path) -> Entry:
    """The predictions of an ensemble, which are one network's scores."""
    import pyarrow
    from pyarrow import parquet

    about, file = _json(path / PREDICTION_FILE), path / PREDICTIONS
    try:
        columns = parquet.read_table(file).to_pydict()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ComparisonError(f"{file} cannot be read: {error}") from None
    said, classes = Said.of(file, about.get("task")), tuple(about.get("classes", ()))
    if said.task is None or said.task.has_classes:
        network = _of_classes(file, columns, classes, said)
    else:
        network, classes = _of_targets(file, columns, said.task, said), ()
    data = about.get("data", {})
    notes = tuple(map(str, about.get("warnings", ())))
    if unlabelled := len(columns["slide"]) - len(network.keys):
        notes += (f"left out, as the label is unknown: {formats.count(unlabelled, 'slide')}",)
    return Entry(
        name=path.name,
        folder=path,
        networks=(network,),
        settings=_of_ensemble(about),
        protocol=str(about.get("protocol", "unknown")),
        data_digest=str(data.get("digest", "")),
        dataset=Path(str(data.get("path", "the data"))).name,
        classes=classes,
        notes=notes,
    )


def _of_classes(
    file: Path, columns: Mapping[str, list[Any]], classes: tuple[str, ...], said: Said
) -> Network:
    """The slides of a table of predictions whose class is known."""
    needed = ["slide", "case", "label", "threshold", *(f"probability_{name}" for name in classes)]
    if not classes or any(name not in columns for name in needed):
        missing = [name for name in needed if name not in columns] or ["classes in prediction.json"]
        raise ComparisonError(f"{file}: expected the columns of a prediction, found no {', '.join(missing)}")
    rows = [i for i, label in enumerate(columns["label"]) if label in classes]
    if not rows:
        raise ComparisonError(f"{file}: no slide has a known label; predict with --labels to compare")
    slides, cases, names = ([columns[name][i] for i in rows] for name in ("slide", "case", "label"))
    probabilities = [[columns[f"probability_{name}"][i] for name in classes] for i in rows]
    labels = [classes.index(label) for label in names]
    scores = scores_of(file, slides, labels, probabilities, cases, said.task)
    threshold = columns["threshold"][rows[0]]
    return Network(tuple(slides), scores, threshold, task=said.task, fitted=said.fitted)


def _of_targets(file: Path, columns: Mapping[str, list[Any]], task: Task, said: Said) -> Network:
    """The slides of a table of predictions some of whose targets are known."""
    truths = [f"true_{name}" for name in task.info.columns]
    needed = ["slide", "case", *truths, *task.columns]
    if missing := [name for name in needed if name not in columns]:
        raise ComparisonError(f"{file}: expected the columns of a prediction, found no {', '.join(missing)}")
    cells = list(zip(*(columns[name] for name in truths), strict=True))
    rows = [i for i, row in enumerate(cells) if any(cell is not None for cell in row)]
    if not rows:
        raise ComparisonError(f"{file}: no slide has known targets; predict with --labels to compare")
    slides, cases = ([columns[name][i] for i in rows] for name in ("slide", "case"))
    predictions = [[columns[name][i] for name in task.columns] for i in rows]
    return Network(
        tuple(slides),
        scores_of(file, slides, [0] * len(rows), predictions, cases, task),
        threshold=None,
        task=task,
        targets_NK=said.targets(file, [cells[i] for i in rows], len(rows)),
        fitted=said.fitted,
    )


_DIFFERS = "differs between its networks"


def _of_ensemble(about: Mapping[str, Any]) -> dict[str, object]:
    """How predictions were made: the settings of their networks, how many there are, and how they decide.

    Predictions of earlier releases do not record the settings; then the folders of the networks are asked,
    if they are still there.
    """
    models = about.get("models")
    models = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    if not models:
        return {}
    trained = [_settings(config) for model in models if (config := _config(model))]
    settings: dict[str, object] = {}
    if len(trained) == len(models):
        for path in dict.fromkeys(path for each in trained for path in each):
            values = [each.get(path) for each in trained]
            settings[path] = values[0] if all(value == values[0] for value in values) else _DIFFERS
    digests = sorted({str(model.get("data_digest", ""))[:8] for model in models})
    return settings | {
        "networks": len(models),
        "trained on data": ", ".join(digests),
        "threshold": about.get("threshold"),
        "threshold from": about.get("threshold_from"),
        "cases by": about.get("how"),
    }


def _config(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a network of an ensemble; empty if it is not known."""
    if isinstance(config := model.get("config"), dict):
        return config
    file = Path(str(model.get("folder", ""))) / "config.json"
    return _json(file) if file.is_file() else {}
