"""`--standardize`: the mean and deviation of every feature over all bags that are sharded together.

Dimensions: N instances of a bag, D features.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from data_prep.readers.sources import read_features
from data_prep.writing.plan import PlannedBag, as_standardized
from data_prep.writing.progress import Count, bar
from data_prep.writing.writer import CHUNK_BYTES
from mhimdist.data.manifest import Manifest
from mhimdist.data.standardization import Standardization
from mhimdist.data.torch_threads import one_torch_thread
from mhimdist.errors import ConfigError, DataError

Moments = tuple[int, Tensor, Tensor]
"""Number of instances, mean (float64, D), and sum of squared distances from it (float64, D)."""


def standardized(bags: Sequence[PlannedBag], scale: Standardization) -> list[PlannedBag]:
    """The plans of the same bags, with features that are standardised as they are written.

    Args:
        bags: the plans; all features are as wide as the scale.
        scale: mean and deviation of each feature.

    Raises:
        DataError: the features have another width than the scale.
    """
    for bag in bags:
        if (got := bag.columns["num_features"]) != len(scale.mean):
            raise DataError(
                f"slide {bag.columns['slide']!r}: expected {len(scale.mean)} features, as many as are "
                f"standardised, got {got}"
            )
    return [as_standardized(bag, scale) for bag in bags]


def measure(
    bags: Sequence[PlannedBag],
    *,
    skip_bad: bool = False,
    workers: int = 1,
    on_bag: Callable[[], None] = lambda: None,
) -> Standardization:
    """Read all features once for the mean and deviation of each; the result does not depend on `workers`.

    Args:
        bags: the plans.
        skip_bad: leave out bags with values that are not finite, which are then left out of the shards, too.
        workers: bags that threads read at a time.
        on_bag: called after each bag, by any of the threads.

    Raises:
        DataError: values are not finite, or no bag can be used.
    """

    def look(bag: PlannedBag) -> Moments | None:
        try:
            return _moments_of(bag)
        except DataError:
            if not skip_bad:
                raise
            return None  # writing the bag says why it cannot be used
        finally:
            on_bag()

    with one_torch_thread(), ThreadPoolExecutor(workers) as threads:
        found = [moments for moments in threads.map(look, bags) if moments is not None]
    if not found:
        raise DataError("no slide has features that can be standardised: all hold values that are not finite")
    count, mean_D, squares_D = found[0]
    for moments in found[1:]:
        count, mean_D, squares_D = _together((count, mean_D, squares_D), moments)
    deviation_D = (squares_D / count).sqrt()
    deviation_D = torch.where(deviation_D > 0, deviation_D, 1.0)
    return Standardization(
        mean=tuple(mean_D.tolist()),
        deviation=tuple(deviation_D.tolist()),
        num_bags=len(found),
        num_instances=count,
    )


def _moments_of(bag: PlannedBag) -> Moments:
    features = read_features(bag.source)
    total: Moments | None = None
    for block in features.blocks(CHUNK_BYTES):
        values_ND = block.double()
        mean_D = values_ND.mean(0)
        if not mean_D.isfinite().all():
            raise DataError(f"{bag.source.path}: features are NaN or infinite, so that they have no mean")
        moments = len(values_ND), mean_D, (values_ND - mean_D).square().sum(0)
        total = moments if total is None else _together(total, moments)
    assert total is not None, "a planned bag has at least one instance"
    return total


def _together(one: Moments, two: Moments) -> Moments:
    """The moments of two samples as one (Chan et al. 1979), which loses no digits to a large mean."""
    count = one[0] + two[0]
    step_D = two[1] - one[1]
    return (
        count,
        one[1] + step_D * (two[0] / count),
        one[2] + two[2] + step_D.square() * (one[0] * two[0] / count),
    )


def scale_of(
    bags: Sequence[PlannedBag],
    *,
    asked: bool,
    like: Path | None,
    before: Manifest | None,
    name: str = "",
    skip_bad: bool = False,
    workers: int = 1,
) -> Standardization | None:
    """What to standardise bags by; None if they are stored as they are.

    Args:
        bags: the plans.
        asked: whether mean and deviation are to be taken over these bags.
        like: a data set whose mean and deviation are to be used; None for none.
        before: the data set that the bags are appended to, whose scale they get; None for a new one.
        name: name of the feature set.
        skip_bad, workers: as in `measure`.

    Raises:
        ConfigError: the options contradict each other or the data set that is appended to.
        DataError: the features cannot be standardised, or `like` holds none that are.
        ManifestError: `like` is not a data set.
    """
    if asked and like is not None:
        raise ConfigError("expected --standardize or --standardize-as, got both")
    given = None
    if like is not None:
        given = Manifest.read(like).info.standardized.get(name)
        if given is None:
            raise DataError(f"--standardize-as {like}: its features{_of(name)} are not standardised")
    if before is not None:
        old = before.info.standardized.get(name)
        if (old is None and asked) or (given is not None and given != old):
            raise ConfigError(
                f"the features{_of(name)} of the data set to append to are "
                f"{f'standardised {old.text}' if old else 'not standardised'}; new ones get the same scale: "
                "leave out --standardize and --standardize-as"
            )
        return old
    if not asked or not bags:
        return given
    looked = Count()
    with bar(len(bags), lambda: looked.total, "standardising:", unit="slides"):
        return measure(bags, skip_bad=skip_bad, workers=workers, on_bag=looked.add)


def _of(name: str) -> str:
    return f" of {name!r}" if name else ""
