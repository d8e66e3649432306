"""The common input of a sweep's trials: settings, and paths on storage that every node sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mhimdist.config.execution import Saving
from mhimdist.config.train import TrainConfig
from mhimdist.data.opening import open_bags, with_features
from mhimdist.data.remote import Location
from mhimdist.data.splits import Split
from mhimdist.data.stored import StoredBags
from mhimdist.distributed.worker_group import Group
from mhimdist.search.options import Sweep
from mhimdist.sweep.trial import Launcher


@dataclass(frozen=True)
class Task:
    """The common input of a sweep's trials: settings, and paths on storage that every node sees.

    Attributes:
        sweep: the settings of the sweep, without its database.
        splits: one split per fold.
        data: folder of shards, or its URL.
        trials: folder that holds the trials' folders.
        stop_file: exists once all trials are to save themselves and end.
        group: the workers of a run; None if one process trains it.
        data_digest: digest of the data set, which every process compares with what it finds; None compares
            nothing.
        outer: number of the outer fold that the sweep is inside, counted from 1.
        feature_sets: the feature sets that the sweep chooses among, the widest first, and the digest of the
            data set with each; empty if it does not choose.
    """

    sweep: Sweep
    splits: Sequence[Split]
    data: Location
    trials: Path
    stop_file: Path
    group: Group | None = None
    data_digest: str | None = None
    outer: int = 1
    feature_sets: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def saving(self) -> Saving:
        """When a run writes checkpoints, and how many it keeps."""
        return self.sweep.saving

    @property
    def calibrated(self) -> TrainConfig:
        """The configuration whose cost is measured: the base, with the widest features of any trial."""
        if not self.feature_sets:
            return self.sweep.train
        return self.sweep.train.model_copy(update={"features": next(iter(self.feature_sets))})

    def digest_of(self, config: TrainConfig) -> str | None:
        """The digest of the data set with the features of a trial, as the driver found it."""
        return self.feature_sets.get(config.features or "", self.data_digest)

    def bags(self) -> StoredBags:
        """The data set: opened once per process; all processes of a node share its files' pages.

        Raises:
            ManifestError: it is not the data set that the sweep's driver opened; otherwise as in `open_bags`.
        """
        train, bag_of = self.sweep.train, self.sweep.bag_of
        return open_bags(self.data, train.loading, train.features, bag_of=bag_of, digest=self.data_digest)

    def bags_of(self, config: TrainConfig) -> StoredBags:
        """The data set with the features of a trial, which the process keeps open beside the base's.

        Raises:
            ManifestError: as in `bags`.
        """
        found = with_features(self.bags(), config.features)
        found.require_digest(self.digest_of(config))
        return found

    def launcher(self) -> Launcher:
        """A launcher that runs folds in this process."""
        sweep = self.sweep
        return Launcher(
            self.bags(), sweep.first_stages, sweep.num_threads, self.saving, self.stop_file.exists
        )
