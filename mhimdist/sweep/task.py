"""The common input of a sweep's trials: settings, and paths on storage that every node sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mhimdist.config.execution import Saving
from mhimdist.data.remote import Location
from mhimdist.data.shards import BagShards, open_bags
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
        data_digest: digest of the data set, which every process compares with what it finds; None compares
            nothing.
        outer: number of the outer fold that the sweep is inside, counted from 1.
    """

    sweep: Sweep
    splits: Sequence[Split]
    data: Location
    trials: Path
    stop_file: Path
    group: Group | None = None
    data_digest: str | None = None
    outer: int = 1

    @property
    def saving(self) -> Saving:
        """When a run writes checkpoints, and how many it keeps."""
        return Saving(self.sweep.keep_last, 0, self.sweep.save_every_s)

    def bags(self) -> BagShards:
        """The data set: opened once per process; all processes of a node share its files' pages.

        Raises:
            ManifestError: it is not the data set that the sweep's driver opened; otherwise as in `open_bags`.
        """
        return open_bags(self.data, self.sweep.train.loading, digest=self.data_digest)

    def launcher(self) -> Launcher:
        """A launcher that runs folds in this process."""
        sweep = self.sweep
        return Launcher(
            self.bags(), sweep.first_stages, sweep.num_threads, self.saving, self.stop_file.exists
        )
