"""The base configuration of a nested sweep on its outer folds, under the protocols that search nothing.

What a search has gained is the difference to what it began with. Both are tested on the same cases.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhimdist import files, terminal
from mhimdist.comparison.compare import compare_entries
from mhimdist.comparison.entries import read_entries
from mhimdist.config.protocols import Protocol
from mhimdist.cross_validation.compare import rows_of
from mhimdist.cross_validation.folds import FoldSet
from mhimdist.cross_validation.options import Candidate, CrossValidation
from mhimdist.data.remote import Location, absolute
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.distributed.fold_tasks import run_folds, stoppable
from mhimdist.errors import CheckpointError, ComparisonError, SplitError
from mhimdist.report import formats
from mhimdist.report.comparison import PAPER_WARNING, Row
from mhimdist.search.options import Sweep
from mhimdist.sweep.finals import final_seeds
from mhimdist.sweep.folder import SweepFolder
from mhimdist.sweep.watch import print_line
from mhimdist.training.folds import Fold
from mhimdist.training.requirements import check_runs


@dataclass(frozen=True)
class Untuned:
    """The base configuration, and its network without masking, on the outer folds.

    Attributes:
        sweep: the nested sweep.
        bags: the data set.
        splits: one per outer fold, under each protocol. All protocols test on the same bags.
        inner: the inner folds of each outer fold, which select under refit.
    """

    sweep: Sweep
    bags: StoredBags
    splits: Mapping[Protocol, Sequence[Split]]
    inner: Sequence[Sequence[Split]]

    @classmethod
    def of(cls, sweep: Sweep, bags: StoredBags, inner: Sequence[Sequence[Split]]) -> "Untuned":
        """Split the data and check every run, before the search begins.

        Args:
            sweep, bags, inner: as in the class.

        Raises:
            SplitError: there are too few cases for validation cases in an outer fold.
            DataError: a run cannot train on its split.
        """
        job = CrossValidation(
            protocol="all",
            folds=sweep.outer_folds,
            split_file=sweep.split_file,
            validation_share=sweep.validation_share,
        )
        try:
            splits = {each: job.splits(bags, each, sweep.split_seed) for each in job.protocols}
        except SplitError as error:
            raise SplitError(f"validation cases of the outer folds (--validation-share): {error}") from None
        named = (
            (f"outer fold {number}, {protocol}", sweep.train, split)
            for protocol, each in splits.items()
            for number, split in enumerate(each, 1)
        )
        check_runs(named, bags)
        return cls(sweep, bags, splits, inner)

    def run(self, data: Location, folder: Path) -> list[Row]:
        """Train and test, and return a row per configuration and protocol; finished runs are only read.

        Args:
            data: folder of shards, on storage that every node sees, or its URL.
            folder: receives the folds' folders.

        Raises:
            PreemptedError: it was asked to stop; every run is saved.
        """
        candidates = CrossValidation(train=self.sweep.train).candidates
        planned = FoldSet(self.sweep, candidates, folder)
        for candidate in candidates:
            inner = [self._inner_runs(planned, candidate, *each) for each in enumerate(self.inner, 1)]
            for protocol, seed in itertools.product(self.splits, final_seeds(self.sweep)):
                for number, split in enumerate(self.splits[protocol], 1):
                    chosen_by = inner[number - 1] if protocol == "refit" else ()
                    planned.add_fold(candidate, split, number, seed, protocol, self.bags, chosen_by)
        outcomes = planned.found()
        if missing := planned.missing():
            print_line(
                f"the base configuration, not tuned, on the outer folds under {', '.join(self.splits)}: "
                f"{formats.count(len(missing), 'run')}"
            )
            terminal.console().print(PAPER_WARNING, style="bold", highlight=False)
            with stoppable(self.sweep) as stopping:
                outcomes |= run_folds(self.sweep, missing, absolute(data), stopping)
        return rows_of(planned, candidates, outcomes, self.bags)

    def _inner_runs(
        self, planned: FoldSet, candidate: Candidate, number: int, splits: Sequence[Split]
    ) -> Sequence[Fold]:
        """The inner runs of a configuration: those of the first trial, if it had this one and finished."""
        inside = self.sweep.inside(number)
        trained = SweepFolder(inside).folds(0, candidate.config, splits)
        if all(fold.is_finished and _recipe(fold) == fold.config.recipe() for fold in trained):
            return trained
        return [
            fold
            for seed in self.sweep.run_seeds
            for fold in planned.add_inner(candidate, splits, number, seed, self.bags)
        ]


def gain_of_search(folder: Path, tuned: Row, untuned: Sequence[Row]) -> list[str]:
    """Test what the search chose against what it began with; write gain.md and gain.json.

    Both have their epochs from the same inner folds, and train and test on the same bags.

    Args:
        folder: the nested sweep's, with table.json.
        tuned: the row of what was chosen.
        untuned: the rows of the base configuration, and of its network without masking; may be empty.

    Returns:
        A sentence; why there is none, if they cannot be compared; nothing without rows.
    """
    base = next((row for row in untuned if row.protocol == "refit"), None)
    if base is None:
        return []
    wanted = {(tuned.name, tuned.protocol), (base.name, base.protocol)}
    try:
        entries = [each for each in read_entries(folder) if (each.name, each.protocol) in wanted]
        comparison = compare_entries(entries)
    except ComparisonError as error:
        return [f"What the search gained is not known: {error}"]
    files.write_text(folder / "gain.md", comparison.markdown())
    files.write_text(folder / "gain.json", comparison.json())
    return list(comparison.sentences)


def _recipe(fold: Fold) -> dict[str, Any]:
    """What a finished fold was trained with."""
    return files.json_object(fold.folder / "config.json", CheckpointError)
