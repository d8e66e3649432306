"""The runs of a cross-validation: candidates x folds x seeds, each run once."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mhimdist.cluster.connect import share_of
from mhimdist.config.execution import Execution
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.options import Candidate
from mhimdist.data.opening import with_features
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.distributed.fold_tasks import Outcome
from mhimdist.errors import CrossValidationError
from mhimdist.report import formats
from mhimdist.training.first_stage import made_with
from mhimdist.training.fold import ERROR_FILE, Fold, fold_folder
from mhimdist.training.result import Protocol


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
        self._devices = [device_of_runs(execution, candidate.config) for candidate in candidates]
        self.folds: dict[str, Fold] = {}
        self.members: dict[tuple[str, Protocol], list[str]] = {}

    def add(self, split: Split, fold: int, seed: int, protocol: Protocol, bags: StoredBags) -> None:
        """Add every candidate on a fold with a seed, unless the candidate runs fewer folds.

        Args:
            split: the bags that train, select and test.
            fold: the fold's number, counted from 1.
            seed: the fold's seed.
            protocol: the protocol that made the split.
            bags: the data set.
        """
        for candidate, device in zip(self._candidates, self._devices, strict=True):
            if fold > (candidate.num_folds or fold):
                continue
            digest, made = make_fold(candidate, split, fold, seed, protocol, bags, self.folder, device)
            self.folds.setdefault(digest, made)
            self.members.setdefault((candidate.name, protocol), []).append(digest)

    def found(self) -> dict[str, Outcome]:
        """The results of the finished folds, by digest."""
        return {digest: left for digest, fold in self.folds.items() if (left := fold.result()) is not None}

    def missing(self) -> dict[str, Fold]:
        """The folds that are not finished."""
        return {digest: fold for digest, fold in self.folds.items() if not fold.is_finished}

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

    Returns:
        The digest and the fold.
    """
    config = candidate.config.model_copy(update={"seed": seed})
    weights = config.teacher.weights
    if weights is not None:
        weights = Path(str(weights).replace("{fold}", str(fold)).replace("{seed}", str(seed)))
        teacher = config.teacher.model_copy(update={"weights": weights})
        config = config.model_copy(update={"teacher": teacher})
    data_digest = with_features(bags, config.features).digest
    made_of = (
        made_with(config, device),
        split.digest(),
        data_digest,
        hashlib.blake2b(weights.read_bytes()).hexdigest() if weights is not None else None,
    )
    digest = digest_of(made_of)
    name = f"{candidate.name}, {protocol}, seed {seed}, fold {fold}"
    place = fold_folder(folder, fold, seed, digest)
    return digest, Fold(name, config, split, fold, place, is_tested=True, data_digest=data_digest)


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
