"""The bag models' settings: every size and switch, its unit and range."""

from typing import TYPE_CHECKING, Annotated, Literal, Self, Union

from pydantic import Field, model_validator

from mhimdist.config import extensions
from mhimdist.config.settings import Settings as Settings
from mhimdist.config.settings import extension_fault


class AttentionMIL(Settings):
    """AB-MIL (Ilse et al. 2018), as the authors of MHIM-MIL build it."""

    name: Literal["abmil"] = Field("abmil", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of the projected instances and the bag embedding")
    attention_dim: int = Field(128, ge=1, description="width of the attention's hidden layer")
    gated: bool = Field(False, description="multiply the attention branch by a sigmoid branch")
    activation: Literal["relu", "tanh"] = Field(
        "relu", description="activation function of the attention branch"
    )
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of projected features dropped, in steps of 1/256"
    )


class Pooling(Settings):
    """Max- or mean-pooling of instance logits; it has no attention, so MHIM cannot mask its bags."""

    name: Literal["max_pooling", "mean_pooling"] = Field("mean_pooling", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of the projected instances")
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of projected features dropped, in steps of 1/256"
    )


class DSMIL(Settings):
    """DSMIL (Li et al. 2021): an instance classifier, and attention to each class's top instance."""

    name: Literal["dsmil"] = Field("dsmil", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of the projected instances and the bag embeddings")
    query_dim: int = Field(128, ge=1, description="width of the queries")
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of projected features dropped, in steps of 1/256"
    )


class TransMIL(Settings):
    """TransMIL (Shao et al. 2021): two Nystrom attention layers with a position encoding between them."""

    name: Literal["transmil"] = Field("transmil", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of a token; a multiple of num_heads")
    num_heads: int = Field(8, ge=1, description="attention heads per layer")
    num_landmarks: int = Field(256, ge=1, description="landmarks of the Nystrom approximation")
    pinv_iterations: int = Field(6, ge=1, description="iterations that approximate the pseudo-inverse")
    score_layer: int = Field(
        0, ge=0, le=1, description="layer, 0 or 1, whose class-token attention scores the instances"
    )
    class_token_std: float = Field(
        1.0,
        ge=0,
        description="standard deviation of the initial class token; 1e-6 in the authors' TransMIL baseline",
    )
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of projected features dropped, in steps of 1/256"
    )
    attention_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of each attention layer's output dropped, in steps of 1/256"
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of {self.num_heads} heads, got {self.hidden_dim}"
            )
        return self


class CLAM(Settings):
    """CLAM (Lu et al. 2021) with one attention branch (sb) or one per class (mb)."""

    name: Literal["clam_sb", "clam_mb"] = Field("clam_sb", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of the projected instances and the bag embedding")
    attention_dim: int = Field(256, ge=1, description="width of the attention's hidden layer")
    num_clustered: int = Field(
        8,
        ge=1,
        description="number of most attended instances to cluster, and of least attended ones; in a bag with "
        "fewer instances all of them",
    )
    instance_loss: Literal["svm", "cross_entropy"] = Field(
        "svm",
        description="loss of the clustering; svm: the smooth top-1 SVM loss with temperature 1 and margin 1",
    )
    instance_loss_weight: float = Field(
        0.3,
        ge=0,
        le=1,
        description="weight w of the clustering loss; the bag's cross-entropy has the weight 1 - w",
    )
    subtyping: bool = Field(
        False,
        description="classes exclude each other, so the most attended instances of the other classes are "
        "negatives too",
    )
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of projected and attention features dropped, in steps of 1/256"
    )


class DTFD(Settings):
    """DTFD-MIL (Zhang et al. 2022): tier 1 classifies and distils pseudo-bags, tier 2 classifies the bag."""

    name: Literal["dtfd"] = Field("dtfd", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of the projected instances and the bag embedding")
    attention_dim: int = Field(128, ge=1, description="width of the hidden layer of both tiers' attention")
    num_pseudo_bags: int = Field(
        4,
        ge=1,
        description="parts that each bag is randomly divided into; a smaller bag has one per instance",
    )
    distillation: Literal["MaxS", "MaxMinS", "AFS"] = Field(
        "AFS",
        description="what each pseudo-bag hands to the second tier; MaxS: the instance of highest class "
        "activation; MaxMinS: the instances of highest and lowest class activation; AFS: the "
        "attention-weighted mean",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of projected features dropped, in steps of 1/256"
    )


MODEL_NAMES = (
    "abmil",
    "dsmil",
    "transmil",
    "clam_sb",
    "clam_mb",
    "dtfd",
    "max_pooling",
    "mean_pooling",
)

EXTENSIONS = extensions.load(extensions.MODELS, taken=MODEL_NAMES, fault=extension_fault)
"""The models that other installed packages add."""

ALL_MODEL_NAMES = (*MODEL_NAMES, *EXTENSIONS.loaded)

# AB-MIL is last because --help shows the defaults of the last model.
if TYPE_CHECKING:
    ModelSettings = Annotated[
        Pooling | DSMIL | TransMIL | CLAM | DTFD | AttentionMIL, Field(discriminator="name")
    ]
else:
    ModelSettings = Annotated[
        Union[(Pooling, DSMIL, TransMIL, CLAM, DTFD, *EXTENSIONS.loaded.values(), AttentionMIL)],
        Field(discriminator="name"),
    ]
