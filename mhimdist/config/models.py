"""The bag models' settings: every size and switch, its unit and range."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every group of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AttentionMIL(Settings):
    """AB-MIL (Ilse et al. 2018), as the authors of MHIM-MIL build it."""

    name: Literal["abmil"] = Field("abmil", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of the projected instances and the bag embedding")
    attention_dim: int = Field(128, ge=1, description="width of the attention's hidden layer")
    gated: bool = Field(False, description="multiply the attention branch by a sigmoid branch")
    activation: Literal["relu", "tanh"] = Field("relu", description="activation of the attention branch")
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of projected features dropped, in steps of 1/256"
    )


class Pooling(Settings):
    """Max- or mean-pooling of instance logits; it has no attention, so it cannot be masked."""

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
    """TransMIL (Shao et al. 2021): two Nystrom attention layers, a position encoding between them."""

    name: Literal["transmil"] = Field("transmil", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of a token; a multiple of num_heads")
    num_heads: int = Field(8, ge=1, description="attention heads of a layer")
    num_landmarks: int = Field(256, ge=1, description="landmarks of the Nystrom approximation")
    pinv_iterations: int = Field(6, ge=1, description="iterations towards the pseudo-inverse")
    score_layer: int = Field(
        0, ge=0, le=1, description="layer whose class token's attention scores the instances, 0 or 1"
    )
    class_token_std: float = Field(
        1.0,
        ge=0,
        description="deviation that the class token starts with; 1e-6 in the authors' TransMIL alone",
    )
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of projected features dropped, in steps of 1/256"
    )
    attention_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of an attention layer's output dropped, in steps of 1/256"
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of {self.num_heads} heads, got {self.hidden_dim}"
            )
        return self


class CLAM(Settings):
    """CLAM (Lu et al. 2021) with one attention branch (sb) or one for each class (mb)."""

    name: Literal["clam_sb", "clam_mb"] = Field("clam_sb", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of the projected instances and the bag embedding")
    attention_dim: int = Field(256, ge=1, description="width of the attention's hidden layer")
    num_clustered: int = Field(
        8, ge=1, description="most and least attended instances that are clustered, each; the bag's at most"
    )
    instance_loss: Literal["svm", "cross_entropy"] = Field(
        "svm", description="of the clustering; svm: the smooth top-1 SVM loss, temperature 1, margin 1"
    )
    instance_loss_weight: float = Field(
        0.3, ge=0, le=1, description="of the clustering loss; the bag's cross-entropy has the rest of 1"
    )
    subtyping: bool = Field(
        False, description="classes exclude each other: the top instances of the others are negatives too"
    )
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of projected and attention features dropped, in steps of 1/256"
    )


class DTFD(Settings):
    """DTFD-MIL (Zhang et al. 2022): pseudo-bags are classified and distilled, the bag from what is left."""

    name: Literal["dtfd"] = Field("dtfd", description="the bag model")
    hidden_dim: int = Field(512, ge=1, description="width of the projected instances and the bag embedding")
    attention_dim: int = Field(128, ge=1, description="width of the hidden layer of both tiers' attention")
    num_pseudo_bags: int = Field(
        4, ge=1, description="parts that a bag is cut into at random; one for each instance of a smaller bag"
    )
    distillation: Literal["MaxS", "MaxMinS", "AFS"] = Field(
        "AFS",
        description="what a pseudo-bag hands on; MaxS: the instance of highest class activation; "
        "MaxMinS: those of highest and lowest; AFS: the attended feature",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of projected features dropped, in steps of 1/256"
    )


# AB-MIL is last because the command line's help shows the defaults of the last one.
ModelSettings = Annotated[
    Pooling | DSMIL | TransMIL | CLAM | DTFD | AttentionMIL, Field(discriminator="name")
]

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
