"""The mean and deviation by which features were standardised before they were stored.

Dimensions: N instances, D features.
"""

import hashlib
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class Standardization(BaseModel):
    """The scale of stored features: `(x - mean) / deviation`, feature by feature.

    Mean and deviation are taken over all instances of all bags that were sharded together, so the bags that a
    fold tests later count in them. No label does.

    Attributes:
        mean: mean of each feature in the source.
        deviation: standard deviation of each feature in the source; 1 for a feature that never varies.
        num_bags, num_instances: the bags and instances that both were taken over.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=1)
    deviation: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    num_bags: Annotated[int, Field(ge=1)]
    num_instances: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _one_of_each(self) -> "Standardization":
        if len(self.mean) != len(self.deviation):
            raise ValueError(f"expected {len(self.mean)} deviations, one per mean, got {len(self.deviation)}")
        return self

    @property
    def digest(self) -> str:
        """A hash of mean and deviation, 12 hex digits: features of another scale have another one."""
        text = f"{self.mean} {self.deviation}"
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def text(self) -> str:
        """The scale in words, for tables."""
        return (
            f"by feature, over {self.num_instances:,} instances of {self.num_bags:,} bags, test bags among "
            f"them, no labels ({self.digest})"
        )

    def apply(self, features_ND: Tensor) -> Tensor:
        """Standardise features of any floating dtype; the result is float32, N x D."""
        mean_D, deviation_D = (
            torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.deviation)
        )
        return ((features_ND.double() - mean_D) / deviation_D).float()
