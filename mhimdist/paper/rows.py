"""The rows of the paper's Tables 1 to 5 as configurations (Tang et al., ICCV 2023).

If the authors' preset has no ratio for a strategy, the ratio is ours; see `LOW_RATIO`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mhimdist.config.method import Masking, Momentum, Teacher, TeacherKind
from mhimdist.config.schedules import Schedule
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.options import Candidate

Base = Callable[[str], TrainConfig]

SYSTEMS = {
    "Max-pooling": "max_pooling",
    "Mean-pooling": "mean_pooling",
    "AB-MIL": "abmil",
    "DSMIL": "dsmil",
    "CLAM-SB": "clam_sb",
    "CLAM-MB": "clam_mb",
    "TransMIL": "transmil",
    "DTFD-MIL": "dtfd",
}
MASKED = {"AB-MIL": "abmil", "TransMIL": "transmil", "DSMIL": "dsmil"}
COLUMNS = {"AB.": "abmil", "Trans.": "transmil"}
LOW_RATIO, RANDOM_RATIO = 0.2, 0.5
"""Our ratios of the low and the random mask, for a data set without them in its preset (nor in the paper)."""

TITLES = {
    1: "Table 1: multiple-instance learning systems",
    2: "Table 2: cost",
    3: "Table 3: the parts of MHIM-MIL",
    4: "Table 4: masking strategies",
    5: "Table 5: teachers",
}


@dataclass(frozen=True)
class Cell:
    """A place in a table, and the configuration that fills it."""

    table: int
    row: str
    column: str
    candidate: Candidate


Entry = tuple[str, str, TrainConfig]
"""Row, column, and the configuration there."""


def _plain(config: TrainConfig) -> TrainConfig:
    return config if config.teacher.kind == "none" else config.first_stage()


def _systems(base: Base) -> list[Entry]:
    plain: list[Entry] = [(name, "", _plain(base(model))) for name, model in SYSTEMS.items()]
    return plain + [(f"MHIM-MIL ({name})", "", base(model)) for name, model in MASKED.items()]


def _costs(base: Base) -> list[Entry]:
    rows = {row: config for row, _, config in _systems(base)}
    names = ("AB-MIL", "CLAM-MB", "DTFD-MIL", "MHIM-MIL (AB-MIL)", "TransMIL", "MHIM-MIL (TransMIL)")
    return [(name, "", rows[name]) for name in names]


def _parts(base: Base) -> list[Entry]:
    return [
        (row, column, config)
        for column, model in COLUMNS.items()
        for row, config in (
            ("Baseline", _plain(base(model))),
            ("+MHIM", _taught(base(model), "student_copy", alpha=0.0)),
            ("+MHIM+Siam.", _taught(base(model), "init_momentum", alpha=0.0)),
            ("+MHIM+Siam.+Con.", base(model)),
        )
    ]


def _strategies(base: Base) -> list[Entry]:
    return [
        (row, column, config)
        for column, model in COLUMNS.items()
        for row, config in (
            ("Baseline", _plain(base(model))),
            ("HAM", _masked(base(model), low=False, random=False)),
            ("R-HAM", _masked(base(model), low=False, random=True)),
            ("L-HAM", _masked(base(model), low=True, random=False)),
            ("LR-HAM", _masked(base(model), low=True, random=True)),
        )
    ]


def _teachers(base: Base) -> list[Entry]:
    kinds: dict[str, TeacherKind] = {
        "Student copy": "student_copy",
        "Init.": "init",
        "Momentum": "momentum",
        "Init.+Momentum": "init_momentum",
    }
    return [
        entry
        for column, model in COLUMNS.items()
        for entry in (
            ("Baseline", column, _plain(base(model))),
            *((row, column, _taught(base(model), kind)) for row, kind in kinds.items()),
        )
    ]


def _taught(config: TrainConfig, kind: TeacherKind, alpha: float | None = None) -> TrainConfig:
    """The configuration with another teacher and, if given, another weight of the consistency loss."""
    moves = kind in ("momentum", "init_momentum")
    own = config.teacher
    weights = {"weights": own.weights, "weights_of": own.weights_of} if "init" in kind else {}
    teacher = Teacher(
        kind=kind, momentum=own.momentum if moves else Momentum(), dropout=own.dropout, **weights
    )
    loss = config.loss if alpha is None else config.loss.model_copy(update={"alpha": alpha})
    return config.model_copy(update={"teacher": teacher, "loss": loss})


def _masked(config: TrainConfig, *, low: bool, random: bool) -> TrainConfig:
    """The configuration with its high mask, and with or without a low and a random mask."""
    own = config.masking
    masking = Masking(
        high=own.high,
        high_pool_share=own.high_pool_share,
        low=(own.low if own.low.peak else Schedule(start=LOW_RATIO)) if low else Schedule(),
        random=(own.random if own.random.peak else Schedule(start=RANDOM_RATIO)) if random else Schedule(),
    )
    return config.model_copy(update={"masking": masking})


ROWS: dict[int, Callable[[Base], list[Entry]]] = {
    1: _systems,
    2: _costs,
    3: _parts,
    4: _strategies,
    5: _teachers,
}
"""Per table number, a function that makes the rows from the full configuration of each model, which is with
MHIM if the model can be masked."""
