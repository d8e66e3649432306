"""A trained network from whatever holds it: a run, an export, or a checkpoint of the authors."""

from pathlib import Path

from mhimdist.errors import CheckpointError
from mhimdist.export import weights_file
from mhimdist.models import BagModel, build
from mhimdist.models.official import load_official, recognise
from mhimdist.prediction.members import HOLDERS
from mhimdist.training import student
from mhimdist.training.student import BEST_STUDENT

MAX_NAMED = 5


def load_student(path: str | Path) -> BagModel:
    """Load a trained network on the CPU, in evaluation mode.

    Args:
        path: the folder of a finished fold, `.../fold-1-seed-2021[-<digest>]`, in a cross-validation, a trial
            or a sweep's final runs; an export, as its file or as its folder if that holds one network; or a
            checkpoint of MHIM-MIL's authors (AB-MIL plain or gated, TransMIL, DSMIL), whose student it takes.

    Raises:
        CheckpointError: the path does not exist, holds no trained network or several, or the network is
            damaged, was changed, or is of another release; the message says what to give instead.

    Example:
        >>> student = load_student("runs/train_c16/folds/fold-1-seed-2021-0f3c")  # doctest: +SKIP
        >>> student(bags.load([0])).logits_BC.softmax(1)  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the folder of a finished fold, or a file")
    if weights_file.is_export(path):
        return weights_file.read(path)[0]
    return _released(path)


def _from_folder(folder: Path) -> BagModel:
    if (folder / BEST_STUDENT).exists():
        return student.load_student(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and weights_file.is_export(files[0]):
        return weights_file.read(files[0])[0]
    folds = [path.parent for name in HOLDERS for path in sorted(folder.glob(f"{name}/*/{BEST_STUDENT}"))]
    if held := [str(path.relative_to(folder)) for path in files or folds]:
        listing = ", ".join(held[:MAX_NAMED]) + (", ..." if len(held) > MAX_NAMED else "")
        raise CheckpointError(f"{folder}: expected one network, got {len(held)}: give one of {listing}")
    raise CheckpointError(
        f"{folder} holds no {BEST_STUDENT}/ and no export: give the folder of a finished fold, an export, or "
        "a checkpoint of the authors"
    )


def _released(path: Path) -> BagModel:
    """The student of a checkpoint of the authors; the names of its weights say which model it is."""
    settings = recognise(path)
    weights = load_official(path, settings)
    network = build(
        settings,
        num_features=weights["projection.linear.weight"].shape[1],
        num_classes=len(weights["head.bias"]),
        seed=0,
    )
    network.load_state_dict(weights)
    return network.eval()
