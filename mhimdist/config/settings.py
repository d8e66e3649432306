"""`Settings`, the base of all settings, and `ModelExtension`, that of a model which another package adds."""

from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every group of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelExtension(Settings):
    """The settings of a bag model that another package adds; see docs/extensions.md.

    A subclass has the field `name: Literal["<name of its entry point>"]` with that default, and a field for
    each setting. Its module is imported with the settings, so it should not import torch: `network` can.

    Attributes:
        has_scores: whether the network scores its instances, so that MHIM can mask by them.
    """

    has_scores: ClassVar[bool] = True

    def network(self, num_features: int, num_outputs: int) -> Any:
        """Make the network, a `mhimdist.models.BagModel`; `initialize` draws its weights afterwards.

        Args:
            num_features: width D of an instance's features.
            num_outputs: number of outputs for a bag.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define network")


def extension_fault(name: str, found: Any) -> str | None:
    """Why what an entry point names cannot be a model; None if it can.

    Args:
        name: name of the entry point.
        found: what it stands for.
    """
    if not (isinstance(found, type) and issubclass(found, ModelExtension)):
        return f"expected a class derived from mhimdist.config.settings.ModelExtension, got {found!r}"
    tag = found.model_fields.get("name")
    if tag is None or get_args(tag.annotation) != (name,) or tag.default != name:
        return f'expected a field name: Literal["{name}"] = "{name}", as its entry point is called'
    if found.network is ModelExtension.network:
        return "expected a method network(num_features, num_outputs), got none"
    return None
