"""The selected student of a run on disk: its weights, and everything needed to build it again."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from mhimdist.config.train import TrainConfig, explain
from mhimdist.data.bags import BagSource
from mhimdist.errors import CheckpointError
from mhimdist.models import BagModel, build
from mhimdist.models.foreign_weights import differences
from mhimdist.training import checkpoint

BEST_STUDENT = "best_student"


def save_student(folder: Path, weights: Mapping[str, Tensor], config: TrainConfig, bags: BagSource) -> None:
    """Write the student of a run's selected epoch; it replaces an older one.

    Args:
        folder: the run's folder.
        weights: the network's `state_dict`.
        config: the run's settings.
        bags: the data set that it was trained on.
    """
    built_from = {
        "config": config.recipe(),
        "num_features": bags.num_features,
        "classes": list(bags.classes),
        "data_digest": bags.digest,
    }
    checkpoint.discard(folder / BEST_STUDENT)
    checkpoint.save(folder / BEST_STUDENT, {"student": weights}, built_from)


def load_student(folder: str | Path) -> BagModel:
    """The student of a run's selected epoch, on the CPU and in evaluation mode.

    Args:
        folder: folder of a finished fold, `.../fold-1-seed-2021[-<digest>]`, in a cross-validation, a trial
            or a sweep's final runs.

    Raises:
        CheckpointError: the folder holds no student, or the student is damaged, from another release, or does
            not fit the configuration next to it; the message lists the weights that do not.

    Example:
        >>> student = load_student("runs/train_c16/folds/fold-1-seed-2021-0f3c")  # doctest: +SKIP
        >>> student(bags.load([0])).logits_BC.softmax(1)  # doctest: +SKIP
    """
    path = Path(folder) / BEST_STUDENT
    if not path.exists():
        raise CheckpointError(f"{folder} holds no {BEST_STUDENT}/: give the folder of a finished fold")
    tensors, state = checkpoint.load(path)
    if "config" not in state:
        raise CheckpointError(
            f"{path}: an earlier release wrote it, without the configuration needed to build the network"
        )
    try:
        config = TrainConfig.model_validate(state["config"])
        num_features, num_classes = state["num_features"], len(state["classes"])
        weights = tensors["student"]
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: another release wrote it; its configuration is unknown here: "
            f"{'; '.join(explain(item) for item in error.errors())}"
        ) from None
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected a student of this release, it lacks {error}") from None
    network = build(config.model, num_features=num_features, num_classes=num_classes, seed=config.seed)
    if faults := differences(weights, network.state_dict()):
        raise CheckpointError(
            f"{path}: the weights do not fit {config.model.name} as configured there: {'; '.join(faults)}"
        )
    network.load_state_dict(weights)
    return network.eval()
