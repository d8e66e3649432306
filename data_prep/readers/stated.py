"""What the user states about all features, if their files do not."""

from typing import Annotated, Any

from pydantic import Field

from data_prep.readers.fields import FEATURES, SIDE_ARRAYS
from data_prep.settings import Settings, whole
from mhimdist.config.fields import Metavar


class Stated(Settings):
    """What the user states about all features; their files may not say it."""

    feature_key: Annotated[str | None, Metavar("NAME")] = Field(
        None,
        description=f"name of the array of features in a file, if it is not one of {', '.join(FEATURES)}; an "
        "array in a group of HDF5 or zarr is named by its path, as group/array",
    )
    encoder: Annotated[str | None, Metavar("NAME")] = Field(
        None,
        description="network that computed the features, if their files do not say so (.pt, .npy, CLAM)",
    )
    patch_size: Annotated[Annotated[int, whole(0)] | None, Metavar("PIXELS")] = Field(
        None, description="edge of a patch, if the files do not say so"
    )
    level: Annotated[Annotated[int, whole(0)] | None, Metavar("N")] = Field(
        None, description="level of the slide's pyramid, from 0, if the files do not say so"
    )

    drop_coords: bool = Field(
        False,
        description="leave out the coordinates of the patches; training does not use them, but heat maps do",
    )

    @property
    def features(self) -> tuple[str, ...]:
        """Possible names of the array of features; a file should hold exactly one."""
        return FEATURES if self.feature_key is None else (self.feature_key,)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays to read."""
        side = [name for name in SIDE_ARRAYS if not (self.drop_coords and name == "coords")]
        return (*self.features, *side)

    @property
    def details(self) -> dict[str, Any]:
        """Those of `DETAILS` that are stated."""
        stated = {"encoder": self.encoder, "patch_size": self.patch_size, "level": self.level}
        return {name: value for name, value in stated.items() if value is not None}


NOTHING_STATED = Stated()
