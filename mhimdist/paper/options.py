"""The options of an ablation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainSerializer, WrapValidator, field_validator, model_validator

from mhimdist.config.options import leaves
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.options import Experiment
from mhimdist.paper.rows import SYSTEMS

TABLES = (1, 2, 3, 4, 5)
"""The tables of the paper that can be filled."""

_VARIED = ("model.name", "masking", "teacher.kind", "student_init", "loss.alpha")

Overlay = Annotated[
    TrainConfig,  # shows the command line all settings
    WrapValidator(lambda given, _: given),  # stay nested settings: they belong to several configurations
    PlainSerializer(lambda given: given),
]


class Ablation(Experiment):
    """Fill the paper's tables."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("data", "name", "tables", "rows", "without", "quick"),
        *("preset", "protocol", "folds", "seeds", "epochs"),
    )

    tables: tuple[int, ...] = Field(
        (1, 2, 3, 4, 5), min_length=1, description="tables of the paper; more than one as 1,3"
    )
    rows: tuple[str, ...] = Field(
        (), description="run only these rows, by their names in the tables; none: all"
    )
    without: tuple[str, ...] = Field(
        (),
        description=f"leave out the rows and columns of these networks ({', '.join(SYSTEMS.values())}); "
        "TransMIL's cost most",
    )
    quick: bool = Field(False, description="use the job's smaller numbers of seeds, folds and epochs")
    preset: Literal["c16", "tcga"] = Field(
        "c16", description="data set of the paper; the rows start from the authors' settings for it"
    )
    train: Overlay = Field(  # type: ignore[assignment]  # a mapping, see `Overlay`
        default_factory=dict,
        description="settings to change in every row that has them",
    )
    epochs: int | None = Field(None, ge=1, description="epochs of every row; none: as configured")
    transmil_epochs: int | None = Field(
        None, ge=1, description="epochs of TransMIL's rows; none: as --epochs says"
    )
    transmil_folds: int | None = Field(
        None, ge=1, description="run TransMIL's rows only on this many folds, from the first on; none: on all"
    )

    @field_validator("tables")
    @classmethod
    def _paper_has_them(cls, tables: tuple[int, ...]) -> tuple[int, ...]:
        if unknown := set(tables) - set(TABLES):
            raise ValueError(
                f"expected tables of the paper, 1 to 5, got {', '.join(map(str, sorted(unknown)))}"
            )
        return tables

    @field_validator("without")
    @classmethod
    def _are_of_the_tables(cls, without: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(without) - set(SYSTEMS.values()):
            raise ValueError(f"expected networks of the tables, got {', '.join(sorted(unknown))}")
        return without

    @model_validator(mode="after")
    def _tables_vary_the_rest(self) -> Self:
        if fixed := [path for path in self.overlay if path.startswith(_VARIED)]:
            raise ValueError(
                f"the tables themselves vary {', '.join(fixed)}: leave it out, and choose the runs by rows "
                "and tables"
            )
        return self

    @property
    def overlay(self) -> dict[str, Any]:
        """The given settings of `train`, by dotted path."""
        given = dict(leaves(self.train))  # type: ignore[arg-type]
        return given | ({"features": self.features} if self.features is not None else {})

    @classmethod
    def from_job(
        cls,
        *,
        quick: dict[str, Any],
        arguments: list[str] | None = None,
        about: str | None = None,
        **defaults: Any,
    ) -> Self:
        """Read the options of this process; `--quick` changes the defaults of other options.

        Args:
            quick: defaults under `--quick`.
            arguments, about, defaults: as in `from_command_line`.

        Raises:
            ConfigError: see `from_command_line`.
        """

        def decided(given: Mapping[str, str]) -> dict[str, Any]:
            return defaults | (quick if "quick" in given else {})

        return cls.read_command_line(arguments, decided, decided_by=("quick",), about=about)
