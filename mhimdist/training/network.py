"""The network of a run: the model of its settings, for the task of its data."""

from mhimdist.config.train import TrainConfig
from mhimdist.data.bags import BagSource
from mhimdist.data.splits import Split
from mhimdist.models import BagModel, build
from mhimdist.tasks import Task, task_of


def task_for(config: TrainConfig, bags: BagSource, split: Split) -> Task:
    """The task of a run, after it has learnt from the run's training bags.

    Args:
        config: the run's settings.
        bags: the data set.
        split: names the training bags.

    Raises:
        ConfigError: see `tasks.task_of`.
    """
    return task_of(bags, config.task).after(bags, bags.rows_of(split.train))


def network_for(config: TrainConfig, bags: BagSource, split: Split) -> BagModel:
    """A network with its first weights, on the CPU.

    Args:
        config, bags, split: as in `task_for`.

    Raises:
        ConfigError: see `tasks.task_of` and `models.build`.
    """
    task = task_for(config, bags, split)
    return build(config.model, num_features=bags.num_features, task=task, seed=config.seed)
