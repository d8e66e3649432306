"""Export: trained networks as a folder that needs PyTorch and safetensors alone, or ONNX Runtime alone."""

from collections.abc import Sequence
from pathlib import Path

from mhimdist import files
from mhimdist.config.models import EXTENSIONS
from mhimdist.errors import CheckpointError, ConfigError
from mhimdist.export import load_model, load_task, onnx_file, weights_file
from mhimdist.prediction.members import Member, find_members
from mhimdist.training import checkpoint
from mhimdist.training.model_card import read_trained, write_card
from mhimdist.training.student import BEST_STUDENT

SINGLE = "model"
"""Name of the file of a network that is exported alone."""


def export_model(
    run: str | Path,
    out: str | Path | None = None,
    *,
    member: str = "all",
    candidate: str | None = None,
    onnx: bool = False,
) -> Path:
    """Export the networks of a run to a folder that needs no mhimdist.

    The folder holds a safetensors file per network, whose header says everything about it in JSON,
    `load_model.py`, which loads them with PyTorch and safetensors alone and averages several (of other tasks
    than classification with `load_task.py`), the model card,
    and with `onnx` an ONNX file per network. The run's own model card is written again.

    Args:
        run: folder of a finished fold, a cross-validation, or a sweep, for its final runs.
        out: the folder to write; by default `export/` in the run's folder.
        member: the networks to export where the run has several: "all" of the configuration, the "best" by
            validation score, or the folder name of one, such as "fold-1-seed-2021-0f3c".
        candidate: the name of a configuration, or the start of its digest, where the run holds several; by
            default the one with masking, under the strict protocol.
        onnx: also write ONNX files, each compared with PyTorch; needs the extra `onnx`.

    Returns:
        The folder.

    Raises:
        CheckpointError: the run holds no trained network, one is unfinished or damaged, or the folder holds
            another export.
        ConfigError: no network is called so, the run holds several configurations, its task is a class of
            yours, or ONNX is not installed.
        ExportMismatchError: an ONNX file does not give PyTorch's probabilities.
        DiskFullError: the disk is full.

    Example:
        >>> mh.export_model("runs/train_c16", member="best")  # doctest: +SKIP
    """
    if (found := files.run_folder(run)) is None:
        raise CheckpointError(
            f"{run}: expected the folder of a run, found none here, in {files.home()} or in its runs/"
        )
    run = found
    chosen = _chosen(find_members([run], candidate), member, run)
    modules = _modules(chosen[0], run)
    folder = Path(out).expanduser() if out is not None else run / "export"
    names = [SINGLE] if len(chosen) == 1 else [each.folder.name for each in chosen]
    _refuse_others(folder, names)
    trained = [read_trained(each.folder) for each in chosen]
    title = f"{run.resolve().name}, {chosen[0].name}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, each, about in zip(names, chosen, trained, strict=True):
        tensors, _ = checkpoint.load(each.folder / BEST_STUDENT)
        header = weights_file.document(each, about)
        if onnx:
            onnx_file.write(folder / f"{name}.onnx", tensors["student"], header)
        weights_file.write(folder / f"{name}.safetensors", tensors["student"], header)
    for code in modules:
        files.write_bytes(folder / code.name, code.read_bytes())
    write_card(folder, trained, title)
    if len(chosen) == 1:
        write_card(chosen[0].folder, trained, chosen[0].folder.name)
    if member == "all" and chosen[0].folder != run.resolve():
        write_card(run, trained, title)
    return folder


def _modules(member: Member, run: Path) -> list[Path]:
    """The code that an export of a network holds.

    Raises:
        ConfigError: its model or its task is not one of mhimdist's own.
    """
    if (name := member.config["model"]["name"]) in EXTENSIONS.packages:
        package, version = EXTENSIONS.packages[name]
        raise ConfigError(
            f"{run}: expected one of mhimdist's own models, got {name} of the package {package} {version}, "
            "which an export cannot hold; take mhimdist.load_student or jobs/predict.py"
        )
    task = member.task
    if not (record := task.record()):
        return [Path(load_model.__file__)]
    if (settings := record["settings"])["name"] not in load_task.PREDICT:
        raise ConfigError(
            f"{run}: expected a model for one of the tasks of mhimdist, got one for {task.name}, a class of "
            f"your own ({settings.get('entry')}), which an export cannot hold; take mhimdist.load_student or "
            "jobs/predict.py"
        )
    return [Path(load_model.__file__), Path(load_task.__file__)]


def _chosen(members: Sequence[Member], member: str, run: Path) -> list[Member]:
    """The members to export.

    Raises:
        ConfigError: none is called so, or none has a validation score to be the best by.
    """
    if member == "all":
        return list(members)
    if member == "best":
        judged = [each for each in members if each.validation_score is not None]
        if not judged:
            raise ConfigError(f"{run}: member: expected a validation score to choose the best by, found none")
        return [max(judged, key=lambda each: each.validation_score or 0.0)]
    named = [each for each in members if each.folder.name == member]
    if not named:
        listing = ", ".join(each.folder.name for each in members)
        raise ConfigError(f"{run}: member: expected all, best or one of {listing}, got {member!r}")
    return named


def _refuse_others(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder with other networks, which would join the ensemble.

    Raises:
        CheckpointError: it holds files that this export does not replace.
    """
    suffixes = (".safetensors", ".onnx")
    own = {f"{name}{suffix}" for name in names for suffix in suffixes}
    found = [path.name for path in sorted(folder.glob("*")) if path.suffix in suffixes]
    others = [name for name in found if name not in own]
    if others:
        raise CheckpointError(
            f"{folder} holds networks of another export ({', '.join(others[:5])}): give another --out, or "
            "delete them"
        )
