"""What a sweep takes of its cluster: measured once for a device, and looked at again as nodes come and go."""

from collections.abc import Mapping
from functools import cached_property

import ray

from mhimdist import planner
from mhimdist.calibration import calibrate
from mhimdist.cluster import Nodes
from mhimdist.errors import MhimdistError, SweepError
from mhimdist.nodes import Node, Share
from mhimdist.planner import Calibration, Plan
from mhimdist.report.live import say
from mhimdist.room import is_out_of_memory
from mhimdist.task import Task


class Planning:
    """Measures a run of a sweep's base configuration when it first has to be known, and counts what fits."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._nodes = Nodes()

    @cached_property
    def calibration(self) -> Calibration:
        """What a run of the base configuration takes where runs will be.

        Raises:
            SweepError: it does not fit into memory even alone.
            MhimdistError: what else keeps it from training, such as features that are not finite.
        """
        sweep, nodes = self._task.sweep, self._nodes.look()
        takes_gpu = sweep.gpus_per_run != 0 and sweep.train.device != "cpu" and any(n.gpus for n in nodes)
        needs = Share(sweep.cpus_per_run, 1.0 if takes_gpu else 0.0)
        if not planner.runs_on(needs, [node for node in nodes if node.is_there]):
            coming = planner.runs_on(needs, nodes) > 0
            say(f"no node for a run is there{': the autoscaler is asked for one' if coming else ''}")
        for name in self._nodes.without_memory:
            say(
                f"the autoscaler's node type {name} declares no memory, so that none is ever added for "
                'trials, which reserve what they need: put "memory" among its resources'
            )
        found = self._measured(needs.options)
        if takes_gpu and found.device != "cuda":
            say("a node lends a GPU to Ray, but torch finds none there: runs train on its CPU")
        return found

    @cached_property
    def share(self) -> Share:
        """What a run takes."""
        return planner.share(self._task.sweep, self.calibration)

    def plan(self, num_trials: int) -> Plan:
        """How the sweep will use the cluster; see `planner.plan`."""
        return planner.plan(self._task.sweep, self.calibration, self._nodes.look(), num_trials)

    def whole(self) -> Share:
        """The most that a run can be given; see `planner.whole`."""
        return planner.whole(self._task.sweep, self.share, self._nodes.look())

    def at_once(self) -> int:
        """Trials that fit on the cluster as it is now and may become, at least one."""
        sweep = self._task.sweep
        fitting = planner.runs_on(self.share, self._nodes.look()) // planner.processes_of(sweep)
        return max(1, min(fitting, sweep.at_once or fitting))

    def there(self) -> list[Node]:
        """The nodes that are there."""
        return [node for node in self._nodes.look() if node.is_there]

    def _measured(self, options: Mapping[str, float]) -> Calibration:
        # A process of its own, which ends: what it takes is what is measured.
        measuring = ray.remote(max_calls=1)(calibrate).options(
            **options, runtime_env={"env_vars": {"MHIMDIST_MEASURED": "1"}}
        )
        try:
            return ray.get(measuring.remote(self._task))
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if is_out_of_memory(cause):
                raise SweepError(
                    "the base configuration ran out of memory while it was calibrated, alone: make the model "
                    f"smaller, or steps by train.max_instances ({' '.join(str(cause).split())[:200]})"
                ) from None
            if isinstance(cause, MhimdistError):
                raise cause from None
            if isinstance(error, ray.exceptions.RayTaskError):
                raise
            raise SweepError(f"the calibration's process was lost: {' '.join(str(error).split())}") from None
