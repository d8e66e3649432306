"""The common input of a sweep's trials: settings, and paths on storage that every node sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mhimdist.config.execution import Saving
from mhimdist.config.train import TrainConfig
from mhimdist.data.opening import open_bags, with_features
from mhimdist.data.remote import Location
from mhimdist.data.shards import BagShards
from mhimdist.data.splits import Split
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
        feature_sets: the feature sets that the sweep chooses among, the widest first; empty if it does not.
    """

    sweep: Sweep
    splits: Sequence[Split]
    data: Location
    trials: Path
    stop_file: Path
    group: Group | None = None
    feature_sets: tuple[str, ...] = ()

    @property
    def saving(self) -> Saving:
        """When a run writes checkpoints, and how many it keeps."""
        return Saving(self.sweep.keep_last, 0, self.sweep.save_every_s)

    @property
    def calibrated(self) -> TrainConfig:
        """The configuration whose cost is measured: the base, with the widest features of any trial."""
        if not self.feature_sets:
            return self.sweep.train
        return self.sweep.train.model_copy(update={"features": self.feature_sets[0]})

    def bags(self) -> BagShards:
        """The data set: opened once per process; all processes of a node share its files' pages."""
        train = self.sweep.train
        return open_bags(self.data, train.loading, train.features)

    def bags_of(self, config: TrainConfig) -> BagShards:
        """The data set with the features of a trial, which the process keeps open beside the base's."""
        return with_features(self.bags(), config.features)

    def launcher(self) -> Launcher:
        """A launcher that runs folds in this process."""
        sweep = self.sweep
        return Launcher(
            self.bags(), sweep.first_stages, sweep.num_threads, self.saving, self.stop_file.exists
        )
