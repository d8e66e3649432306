"""A sweep inside each outer fold, so that the reported figure has never seen its own selection.

    runs/<name>/
        outer-1/, outer-2/, ...     a whole sweep each, with its report, on the cases of one training fold
        folds/                      the best configuration of each, trained on its whole training fold; under
                                    the protocol "all" also the base configuration under the others
        inner/                      inner folds of the network without masking
        table.md, .csv, .json       the outer figures
        report.html, result.json

The folder reads like that of a cross-validation: `compare.py` and `report.py` take it as one.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from mhimdist import files
from mhimdist.config.protocols import Protocol
from mhimdist.cross_validation.compare import print_report, raise_failures, write_tables
from mhimdist.data.remote import Location
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.errors import SplitError, SweepError
from mhimdist.report import formats
from mhimdist.report.comparison import Comparison, Row
from mhimdist.report.summary import short_names
from mhimdist.report.text_table import Grid
from mhimdist.search.options import Sweep
from mhimdist.sweep.encoders import rows_told_apart
from mhimdist.sweep.finals import Finished, final_seeds
from mhimdist.sweep.folder import IDENTITY_FILE
from mhimdist.sweep.untuned import Untuned, gain_of_search
from mhimdist.sweep.watch import print_line
from mhimdist.training.environment import environment
from mhimdist.training.requirements import check_runs
from mhimdist.training.result import Result

Search = Callable[[Sweep, list[Split], int, Path], Finished]
"""Runs the sweep inside an outer fold, given its settings, its folds, its number and the finals' folder."""


def run_nested(sweep: Sweep, bags: StoredBags, search: Search, data: Location) -> Path:
    """Run a sweep inside each outer fold and report on the outer test cases, which no search has seen.

    Under the protocol "all" the base configuration follows, not tuned, under the other protocols.

    Called again with the same arguments, it resumes in the outer fold where it was cut off.

    Args:
        sweep: the settings; each outer fold gets a sweep with these and its own name.
        bags: the data set.
        search: runs one of these sweeps.
        data: folder of shards, on storage that every node sees, or its URL.

    Returns:
        The folder.

    Raises:
        CrossValidationError: runs of the base configuration failed; tables and page are written first.
        SplitError: there are too few cases for the outer folds, or for the inner ones of one of them.
        SweepError: the folder holds a sweep of another protocol, or see `run_sweep`.
        PreemptedError: it was asked to stop; the same command resumes it.
    """
    started, folder = time.monotonic(), sweep.folder
    if (folder / IDENTITY_FILE).exists():
        raise SweepError(f"{folder} holds a sweep that is not nested: give another --name, or delete it")
    outer = sweep.outer_splits(bags)
    inner = [_inner(sweep, bags, split, number) for number, split in enumerate(outer, 1)]
    check_runs(
        (
            (f"outer fold {number}, fold {fold}", sweep.train, split)
            for number, splits in enumerate(inner, 1)
            for fold, split in enumerate(splits, 1)
        ),
        bags,
    )
    untuned = Untuned.of(sweep, bags, inner) if sweep.protocol == "all" else None
    with sweep.driving():
        if sweep.fresh:
            for name in ("folds", "inner"):
                shutil.rmtree(folder / name, ignore_errors=True)
        finished = []
        for number, splits in enumerate(inner, 1):
            print_line(f"outer fold {number} of {len(outer)}")
            finished.append(search(sweep.inside(number), splits, number, folder / "folds"))
        rows = untuned.run(data, folder / "folds") if untuned else []
        trained: dict[Protocol, Sequence[Split]] = {"nested": outer, **(untuned.splits if untuned else {})}
        num_train = {each: mean(len(split.train) for split in splits) for each, splits in trained.items()}
        comparison = _report(sweep, bags, finished, rows, num_train, time.monotonic() - started)
        raise_failures(comparison, folder)
    return folder


def _inner(sweep: Sweep, bags: StoredBags, outer: Split, number: int) -> list[Split]:
    try:
        return sweep.inner_splits(bags, outer)
    except SplitError as error:
        raise SplitError(f"inner folds of outer fold {number} (--folds): {error}") from None


def _report(
    sweep: Sweep,
    bags: StoredBags,
    finished: Sequence[Finished],
    untuned: Sequence[Row],
    num_train: Mapping[Protocol, float],
    wall_s: float,
) -> Comparison:
    """Write the tables, the page and result.json, and print the tables."""
    model, has_plain = sweep.train.model.name, any(each.plain for each in finished)
    tuned = f"tuned MHIM ({model})" if has_plain else f"tuned {model}"
    of_sets = {f"{tuned} on {name}": found for name, found in _of_features(finished).items()}
    found = {
        tuned: [r for each in finished for r in each.tuned],
        f"tuned {model}, without masking": [r for each in finished for r in each.plain],
        **of_sets,
    }
    note = f"the settings are those that each outer fold's search of {sweep.num_trials} trials chose"
    rows = [
        Row(name, "nested", results, len(finished) * sweep.final_seeds, note=note)
        for name, results in found.items()
        if results
    ]
    comparison = Comparison(
        name=sweep.name,
        dataset=bags.name,
        synthetic=bags.synthetic,
        num_bags=len(bags),
        num_cases=len(set(bags.cases)),
        num_folds=len(finished),
        split_by=f"{len(finished)} splits of {sweep.split_file.name}"
        if sweep.split_file
        else f"{len(finished)}-fold by case",
        seeds=final_seeds(sweep),
        rows=[*rows, *untuned],
        wall_s=wall_s,
        num_found=0,
        num_train=num_train,
        validation_share=sweep.validation_share,
        inner_folds=sweep.folds,
        chosen=chosen_table(sweep.name, finished),
    )
    folder = sweep.folder
    if of_sets or untuned:
        files.write_text(folder / "table.json", comparison.json())  # says which folds are of which row
        gain = gain_of_search(folder, rows[0], untuned)
        comparison = _with_sentences(comparison, [*gain, *rows_told_apart(folder, list(of_sets))])
    files.write_text(folder / "options.json", sweep.model_dump_json(indent=1, exclude={"storage"}))
    files.write_text(folder / "environment.json", json.dumps(environment(sweep.num_threads), indent=1))
    write_tables(comparison, folder)
    print_report(comparison, folder)
    result = _result(folder, finished, rows[0], untuned)
    files.write_text(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return comparison


def _result(folder: Path, finished: Sequence[Finished], best: Row, untuned: Sequence[Row]) -> dict[str, Any]:
    """The figures of result.json."""
    low, high = best.interval or (None, None)
    score = best.task.selection
    test = best.spread(score)
    result: dict[str, Any] = {
        f"test_{score}": test[0] if test else None,
        f"test_{score}_std": test[1] if test else None,
        f"test_{score}_low": low,
        f"test_{score}_high": high,
        "outer": [{"fold": number, **_outer(each)} for number, each in enumerate(finished, 1)],
        "report": str(folder / "report.html"),
    }
    if untuned:
        result["untuned"] = [
            {"name": row.name, "protocol": row.protocol, f"test_{score}": (row.spread(score) or [None])[0]}
            for row in untuned
        ]
    return result


def _of_features(finished: Sequence[Finished]) -> dict[str, list[Result]]:
    """The final runs of the best trial of each feature set, of the sets that every outer fold has tried.

    Empty if there are fewer than two.
    """
    tried = [name for name in finished[0].of_features if all(name in each.of_features for each in finished)]
    if len(tried) < 2:
        return {}
    return {name: [r for each in finished for r in each.of_features[name]] for name in sorted(tried)}


def _with_sentences(comparison: Comparison, sentences: Sequence[str]) -> Comparison:
    """The comparison with these sentences below what the outer folds chose."""
    assert comparison.chosen is not None, "a nested sweep has chosen"
    caption = " ".join([comparison.chosen.caption, *sentences])
    return replace(comparison, chosen=replace(comparison.chosen, caption=caption))


def _outer(each: Finished) -> dict[str, object]:
    """An outer fold for result.json."""
    return {
        "trial": each.best.number,
        "inner_value": each.best.value,
        "params": dict(each.best.params),
        "num_epochs": each.tuned[0].num_epochs,
        f"test_{each.task.selection}": each.test_score,
        "folder": str(each.folder),
    }


def chosen_table(name: str, finished: Sequence[Finished]) -> Grid:
    """The settings that each outer fold's search has chosen.

    Args:
        name: of the nested sweep.
        finished: the sweeps, in the order of the outer folds.
    """
    paths = list(dict.fromkeys(path for each in finished for path in each.best.params))
    short, title = short_names(paths), finished[0].task.title

    def line(number: int, each: Finished) -> list[str]:
        params = each.best.params
        return [
            str(number),
            str(each.best.number),
            formats.auc(each.best.value),
            formats.auc(each.test_score),
            str(each.tuned[0].num_epochs),
            *(formats.setting(params[path]) if path in params else "" for path in paths),
        ]

    return Grid(
        title=f"{name}: what each outer fold's search chose",
        header=[
            "outer fold",
            "trial",
            f"inner {title}",
            f"test {title}",
            "epochs",
            *(short[path] for path in paths),
        ],
        rows=[line(number, each) for number, each in enumerate(finished, 1)],
        caption=f"Inner {title}: the trial's mean on the validation cases of the inner folds, which is "
        f"optimistic because it was chosen. Test {title}: of the outer fold's test cases, the mean over the "
        "final seeds. Where the folds choose alike, the search has found something; where they do not, its "
        "figure is that of the search and not of one configuration.",
        optional=[short[path] for path in reversed(paths)],
    )
