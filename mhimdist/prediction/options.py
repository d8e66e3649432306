"""The options of a prediction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mhimdist.config.fields import Metavar
from mhimdist.config.options import Options
from mhimdist.files import home


class Prediction(Options):
    """Apply trained models to slides: probabilities, predictions and what each instance says."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("models", "data", "out", "labels", "scores", "cases", "threshold", "skip_bad", "device"),
    )
    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Models and data": ("models", "data", "out", "home", "candidate", "features", "bag_of"),
        "Prediction": ("cases", "threshold", "scores", "skip_bad", "fresh"),
        "Labels": (
            *("labels", "slide_column", "label_column", "case_column", "target_column", "time_column"),
            *("event_column", "case_from", "ignore_labels"),
        ),
        "What files do not say": ("feature_key", "encoder", "patch_size"),
        "Resources": ("device", "threads", "workers", "gpus_per_worker", "insecure"),
    }

    models: tuple[Path, ...] = Field(
        min_length=1,
        description="folders of trained models, as one,two: a fold, a cross-validation or a sweep (its final "
        "runs), here or below --home; all their folds and seeds vote together",
    )
    data: Annotated[str, Metavar("DATA")] = Field(
        description="folder of shards or of feature files, as CLAM, TRIDENT, STAMP or your scripts wrote "
        "them; the URL of shards; or the name of an embedded data set"
    )
    out: Path = Field(description="folder to write; the same command resumes what is there")
    home: Path = Field(
        default_factory=home,
        description="folder that contains runs/ and data/ (default: MHIMDIST_HOME, otherwise ~/mhimdist)",
    )
    candidate: str | None = Field(
        None,
        description="configuration to take from a folder that holds several: its name, such as "
        "'MHIM (abmil)', or the start of its digest; none: the masked one",
    )
    labels: Path | None = Field(
        None,
        description="table of slide, label and case, as for sharding; none: the labels that the data state",
    )
    slide_column: str | None = Field(None, description="column of the slide, if it has an unusual name")
    label_column: str | None = Field(None, description="column of the label, if it has an unusual name")
    case_column: str | None = Field(None, description="column of the case, if it has an unusual name")
    target_column: str | None = Field(
        None,
        description="columns of the labels or numbers that the model predicts, as NAME,NAME,... in its "
        "order; none: those of its training table",
    )
    time_column: str | None = Field(
        None,
        description="of survival: column of the time, or NAME,NAME of the time of the event and the time "
        "last seen; none: that of the training table, or a usual name",
    )
    event_column: str | None = Field(
        None,
        description="of survival: column of the event; none: that of the training table, or a usual name",
    )
    case_from: Literal["tcga"] | None = Field(
        None, description="take the case from the name of the slide; tcga takes the first 12 characters"
    )
    ignore_labels: bool = Field(False, description="do not read the labels that the data state")
    feature_key: str | None = Field(
        None, description="name of the array of features in the files, if it is an unusual one"
    )
    features: str | None = Field(
        None,
        description="feature set of the data to predict from, if they have several by name; none: that which "
        "the models were trained on",
    )
    encoder: str | None = Field(
        None, description="network that computed the features, if their files do not say so"
    )
    patch_size: int | None = Field(
        None, gt=0, description="edge of a patch in pixels, if the files do not say so"
    )
    cases: Literal["mean", "max", "attention", "union"] = Field(
        "mean",
        description="how a case with several slides is predicted: mean or largest probability of its slides; "
        "attention, their mean weighted by each slide's share of the attention when all slides are one bag; "
        "or union, all its slides as one bag",
    )
    bag_of: Literal["slide", "case"] | None = Field(
        None,
        description="what is predicted as one bag; case: all slides of a case, and there is no prediction of "
        "slides; none: as the models were trained",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="for two classes, the lowest probability of the second one that is called positive; "
        "none: the one that the models' validation bags chose",
    )
    scores: bool = Field(
        False, description="write scores/<slide>.parquet: attention and class probabilities of every instance"
    )
    skip_bad: bool = Field(
        False, description="leave out slides that cannot be read or predicted, and list them"
    )
    fresh: bool = Field(False, description="begin anew: delete the predictions that the folder holds")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the networks compute")
    threads: int | None = Field(
        None,
        ge=1,
        description="slides predicted at a time by this process on a CPU, each by one thread; none: one per "
        "core",
    )
    workers: int | None = Field(
        None, ge=1, description="Ray tasks that share the slides over the cluster; none: this process alone"
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="share of a GPU per Ray task; none: a quarter if the cluster has GPUs"
    )
    insecure: bool = Field(
        False,
        description="use Ray even if RAY_AUTH_MODE=disabled opens the cluster to everybody who reaches it",
    )
