"""The runs of a cross-validation: candidates x folds x seeds, each run once."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mhimdist.cluster.connect import share_of
from mhimdist.config.execution import Execution
from mhimdist.config.protocols import Protocol
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.options import Candidate
from mhimdist.data.opening import with_features
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.distributed.fold_tasks import Outcome
from mhimdist.errors import CrossValidationError
from mhimdist.report import formats
from mhimdist.training.first_stage import made_with
from mhimdist.training.folds import ERROR_FILE, Fold, fold_folder
from mhimdist.training.refit import RULE_VERSION

INNER = "inner"
"""The folder of inner folds, next to that of the folds that they choose for."""


def raise_failed(of: str, failures: Mapping[str, str], folder: Path) -> None:
    """Raise for the runs that failed; the message says where the full reasons are.

    Args:
        of: the words after "3 runs", such as " of train_c16"; may be empty.
        failures: the last line of each reason, by name.
        folder: holds the folds' folders.

    Raises:
        CrossValidationError: at least one run failed.
    """
    if failures:
        listing = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise CrossValidationError(
            f"{formats.count(len(failures), 'run')}{of} failed; run the same command again to retry. Full "
            f"reasons: {folder}/*/{ERROR_FILE}. {listing}"
        )


class FoldSet:
    """Candidates x folds x seeds; identical folds are one fold.

    Attributes:
        folder: holds the folds' folders.
        folds: the folds, by a digest of everything that each is made of.
        inner: the inner folds that choose for some of them, likewise; they are in a folder next to `folder`.
        members: digests of the folds of each candidate under each protocol, ordered by seed, then fold.
    """

    def __init__(self, execution: Execution, candidates: Sequence[Candidate], folder: Path) -> None:
        """Begin an empty set.

        Args:
            execution: the resources of each run.
            candidates: the configurations that run on each fold.
            folder: holds the folds' folders.

        Raises:
            CrossValidationError: two candidates have the same name, or an earlier release wrote the folder.
        """
        names = [candidate.name for candidate in candidates]
        if len(set(names)) < len(names):
            raise CrossValidationError(
                f"expected another name for each candidate, got {', '.join(sorted(names))}"
            )
        if (old := folder.parent / "units").exists() or (old := folder / "units").exists():
            raise CrossValidationError(
                f"{old}: an earlier release wrote it, with another layout of folders; give this command "
                "another --name, or delete the folder"
            )
        self.folder, self._candidates = folder, candidates
        self._devices = {each.name: device_of_runs(execution, each.config) for each in candidates}
        self.folds: dict[str, Fold] = {}
        self.inner: dict[str, Fold] = {}
        self.members: dict[tuple[str, Protocol], list[str]] = {}

    def add(
        self,
        split: Split,
        fold: int,
        seed: int,
        protocol: Protocol,
        bags: StoredBags,
        inner_splits: Sequence[Split] = (),
    ) -> None:
        """Add every candidate on a fold with a seed, unless the candidate runs fewer folds.

        Args:
            split: the bags that train, select and test.
            fold: the fold's number, counted from 1.
            seed: the fold's seed.
            protocol: the protocol that made the split.
            bags: the data set.
            inner_splits: the inner folds of the split that choose for it; empty if its validation bags do.
        """
        for candidate in self._candidates:
            if fold > (candidate.num_folds or fold):
                continue
            inner = self.add_inner(candidate, inner_splits, fold, seed, bags)
            self.add_fold(candidate, split, fold, seed, protocol, bags, inner)

    def add_inner(
        self, candidate: Candidate, splits: Sequence[Split], fold: int, seed: int, bags: StoredBags
    ) -> list[Fold]:
        """Add the inner folds that choose for a candidate on a fold with a seed, and return them.

        Args:
            candidate: one of the set's.
            splits: the inner folds, in order.
            fold, seed, bags: as in `add`.
        """
        device = self._devices[candidate.name]
        made = [
            make_inner(candidate, split, f"{fold}, inner fold {number}", seed, bags, self.folder, device)
            for number, split in enumerate(splits, 1)
        ]
        self.inner |= dict(made)
        return [fold for _, fold in made]

    def add_fold(
        self,
        candidate: Candidate,
        split: Split,
        fold: int,
        seed: int,
        protocol: Protocol,
        bags: StoredBags,
        inner: Sequence[Fold] = (),
    ) -> None:
        """Add a candidate on a fold with a seed.

        Args:
            candidate: one of the set's.
            split, fold, seed, protocol, bags, inner: as in `make_fold`.
        """
        device = self._devices[candidate.name]
        digest, made = make_fold(candidate, split, fold, seed, protocol, bags, self.folder, device, inner)
        self.folds.setdefault(digest, made)
        self.members.setdefault((candidate.name, protocol), []).append(digest)

    def found(self) -> dict[str, Outcome]:
        """The results of the finished folds, by digest."""
        return {digest: left for digest, fold in self.folds.items() if (left := fold.result()) is not None}

    def missing(self) -> dict[str, Fold]:
        """The folds that are not finished, and the inner folds that these wait for."""
        outer = {digest: fold for digest, fold in self.folds.items() if not fold.is_finished}
        needed = {inner.folder for fold in outer.values() for inner in fold.inner}
        inner = {
            digest: fold
            for digest, fold in self.inner.items()
            if fold.folder in needed and not fold.is_finished
        }
        return inner | outer

    def failures(self, outcomes: Mapping[str, Outcome], digests: Iterable[str]) -> dict[str, str]:
        """The reasons of the failed folds among the digests, by name."""
        return {self.folds[d].name: reason for d in digests if isinstance(reason := outcomes.get(d), str)}

    def raise_failures(self, outcomes: Mapping[str, Outcome]) -> None:
        """Raise for the folds that failed.

        Raises:
            CrossValidationError: at least one fold failed.
        """
        raise_failed("", self.failures(outcomes, self.folds), self.folder)


def make_fold(
    candidate: Candidate,
    split: Split,
    fold: int,
    seed: int,
    protocol: Protocol,
    bags: StoredBags,
    folder: Path,
    device: torch.device,
    inner: Sequence[Fold] = (),
) -> tuple[str, Fold]:
    """Make the fold of a candidate with a seed, and the digest of everything that it is made of.

    Args:
        candidate: the configuration, without the seed.
        split: the bags that train, select and test.
        fold: the fold's number, counted from 1.
        seed: the fold's seed.
        protocol: the protocol that made the split.
        bags: the data set.
        folder: holds the folds' folders.
        device: the device on which it will train, see `device_of_runs`.
        inner: the inner folds that choose for it; empty if its validation bags do.

    Returns:
        The digest and the fold.
    """
    config, data_digest, made_of = _made_of(candidate, split, fold, seed, bags, device)
    if inner:
        made_of = [*made_of, RULE_VERSION, [(each.config.seed, each.split.digest()) for each in inner]]
    if protocol == "nested":  # what a search has chosen may be what refit has been given
        made_of = [*made_of, protocol]
    digest = digest_of(made_of)
    return digest, Fold(
        f"{candidate.name}, {protocol}, seed {seed}, fold {fold}",
        config,
        split,
        fold,
        fold_folder(folder, fold, seed, digest),
        is_tested=True,
        data_digest=data_digest,
        inner=tuple(inner),
        is_searched=protocol == "nested",
    )


def make_inner(
    candidate: Candidate,
    split: Split,
    name: str,
    seed: int,
    bags: StoredBags,
    folder: Path,
    device: torch.device,
) -> tuple[str, Fold]:
    """Make an inner fold of a candidate with a seed, and its digest.

    Args:
        candidate, seed, bags, device: as in `make_fold`.
        split: the bags that train and validate; its test bags are those of the outer fold, and are not read.
        name: the outer fold's number and the words that tell the inner fold, such as "1, inner fold 2".
        folder: holds the outer folds' folders; the inner ones get a folder next to it.

    Returns:
        The digest and the fold.
    """
    fold = int(name.partition(",")[0])
    config, data_digest, made_of = _made_of(candidate, split, fold, seed, bags, device)
    digest = digest_of(["inner", *made_of])
    return digest, Fold(
        f"{candidate.name}, refit, seed {seed}, fold {name}",
        config,
        split,
        fold,
        fold_folder(folder.parent / INNER, fold, seed, digest),
        is_tested=False,
        data_digest=data_digest,
        is_inner=True,
    )


def _made_of(
    candidate: Candidate, split: Split, fold: int, seed: int, bags: StoredBags, device: torch.device
) -> tuple[TrainConfig, str, list[Any]]:
    """The configuration of a fold, the digest of its data, and everything that it is made of."""
    config = candidate.config.model_copy(update={"seed": seed})
    weights = config.teacher.weights
    if weights is not None:
        weights = Path(str(weights).replace("{fold}", str(fold)).replace("{seed}", str(seed)))
        teacher = config.teacher.model_copy(update={"weights": weights})
        config = config.model_copy(update={"teacher": teacher})
    data_digest = with_features(bags, config.features).digest
    return (
        config,
        data_digest,
        [
            made_with(config, device),
            split.digest(),
            data_digest,
            hashlib.blake2b(weights.read_bytes()).hexdigest() if weights is not None else None,
        ],
    )


def device_of_runs(execution: Execution, config: TrainConfig) -> torch.device:
    """The device on which a run will train; this process need not have it."""
    if config.device != "auto":
        return torch.device(config.device)
    share = share_of(execution.cpus_per_run, execution.gpus_per_run if execution.workers == 1 else None)
    return torch.device("cuda" if share.gpus else "cpu")


def digest_of(made_of: Any) -> str:
    """Digest of a value that JSON can hold: 16 hex digits."""
    text = json.dumps(made_of, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
