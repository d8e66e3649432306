"""What every trial of a sweep is given: settings, and paths on storage that every node sees."""

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
    """What every trial of a sweep is told: settings, and paths on storage that every node sees.

    Attributes:
        sweep: how trials are run.
        splits: of the folds.
        data: folder of shards, or its URL.
        trials: folder of the trials' own.
        stop_file: there once all trials are to save themselves and end.
        group: the workers of a run, where several train one.
    """

    sweep: Sweep
    splits: Sequence[Split]
    data: Location
    trials: Path
    stop_file: Path
    group: Group | None = None

    @property
    def saving(self) -> Saving:
        """When a run makes checkpoints."""
        return Saving(self.sweep.keep_last, 0, self.sweep.save_every_s)

    def bags(self) -> BagShards:
        """The data set; opened once a process, its files' pages shared by all processes of a node."""
        return open_bags(self.data, self.sweep.train.loading)

    def launcher(self) -> Launcher:
        """Runs folds in this process."""
        sweep = self.sweep
        return Launcher(
            self.bags(), sweep.first_stages, sweep.num_threads, self.saving, self.stop_file.exists
        )
