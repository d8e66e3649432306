"""The computation: every network of an ensemble on one bag at a time, on a CPU in several threads.

Each bag is computed by one thread, whatever their number, so the numbers do not depend on it, and no thread
waits for another one whose core is busy with other work.

Dimensions: N instances of a bag, C classes, M networks, D features, H heads.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mhimdist.data import memory
from mhimdist.data.bags import PackedBags
from mhimdist.data.cases import as_one
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.torch_threads import one_torch_thread
from mhimdist.errors import ConfigError, MhimdistError, NonFiniteError
from mhimdist.models import BagModel, BagOutput
from mhimdist.prediction.sources import Bags
from mhimdist.training import denormals
from mhimdist.training.student import load_student, load_teacher


@dataclass(frozen=True)
class Item:
    """What is predicted as one bag: a slide, or all slides of a case.

    Attributes:
        what, name: "slide" or "case", and its name.
        key: key of the bag, on which a network's random cuts depend.
        rows: row numbers of its slides.
        how: "union" predicts them as one bag, "attention" each slide, and weights them; see `--cases`.
        is_scored: whether what its instances say is kept if that is asked for.
    """

    what: str
    name: str
    key: str
    rows: tuple[int, ...]
    how: Literal["union", "attention"] = "union"
    is_scored: bool = True

    @property
    def place(self) -> tuple[tuple[int, ...], str]:
        """What tells it from the other items of a data set."""
        return self.rows, self.how


@dataclass(frozen=True)
class InstanceScores:
    """What the ensemble says of each instance of a bag: means over the networks.

    Attributes:
        attention_N: float32 weights that add up to 1; None if a network has none.
        instance_NC: float32 predictions by each instance alone, such as class probabilities; None if a
            network does not define them.
        teacher_attention_N: `attention_N` by the teachers; None if a run has kept none.
    """

    attention_N: np.ndarray | None
    instance_NC: np.ndarray | None
    teacher_attention_N: np.ndarray | None


@dataclass(frozen=True)
class Predicted:
    """The outcome of an item: probabilities of every network, or why there are none.

    Attributes:
        item: what was predicted.
        probabilities_MC: float64, one row per network; None if it failed.
        error: why it failed.
    """

    item: Item
    probabilities_MC: np.ndarray | None
    error: str = ""


@lru_cache(maxsize=1)
def _networks(folders: tuple[Path, ...], digests: tuple[str, ...], device: str) -> tuple[BagModel, ...]:
    """The networks, which a process keeps from one slice of slides to the next unless they change."""
    return tuple(load_student(folder).to(device) for folder in folders)


@lru_cache(maxsize=1)
def _teachers(
    folders: tuple[Path, ...], digests: tuple[str, ...], device: str
) -> tuple[BagModel | None, ...]:
    """The teachers, which only scores of instances need."""
    loaded = (load_teacher(folder) for folder in folders)
    return tuple(None if network is None else network.to(device) for network in loaded)


Keep = Callable[[Item, np.ndarray, InstanceScores], None]
"""Keeps what the instances of an item say, given its probabilities, M x C."""


@dataclass(frozen=True)
class _Scoring:
    """Who takes what the instances say, and the teachers that are asked, too."""

    keep: Keep
    teachers: tuple[BagModel | None, ...]


@dataclass(frozen=True)
class Ensemble:
    """Networks that predict together.

    Attributes:
        folders, digests: folders of their runs, and the digest of each network's weights.
        device: "cpu" or "cuda".
        threads: bags computed at a time on a CPU.
        skip_bad: whether an item that fails has an outcome, too; otherwise it raises.
    """

    folders: tuple[Path, ...]
    digests: tuple[str, ...]
    device: str
    threads: int
    skip_bad: bool

    def predict(self, bags: Bags, items: Sequence[Item], keep: Keep | None = None) -> Generator[Predicted]:
        """Predict items, in no particular order; close the iterator to stop early.

        Args:
            bags: the data set.
            items: what to predict.
            keep: takes what the instances of an item say, which is computed only for it.

        Raises:
            MhimdistError: an item cannot be read, or its probabilities are not finite; the message names it.
        """
        networks = _networks(self.folders, self.digests, self.device)
        scoring = None
        if keep is not None:
            scoring = _Scoring(keep, _teachers(self.folders, self.digests, self.device))
        if self.device == "cpu":
            memory.give_back_large_blocks()
            yield from self._in_threads(networks, bags, items, scoring)
        else:
            yield from self._read_ahead(networks, bags, items, scoring)

    def _in_threads(
        self, networks: Sequence[BagModel], bags: Bags, items: Sequence[Item], scoring: _Scoring | None
    ) -> Generator[Predicted]:
        own = threading.local()

        def predict(item: Item) -> Predicted:
            return self._guarded(item, lambda: _load(bags, item, own), networks, scoring)

        left = deque(items)
        with one_torch_thread(), ThreadPoolExecutor(self.threads, "predict") as pool:
            try:
                running: set[Future[Predicted]] = set()
                while left or running:
                    while left and len(running) < 2 * self.threads:
                        running.add(pool.submit(predict, left.popleft()))
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    # What was computed is handed on before an error ends all.
                    for future in sorted(done, key=lambda each: each.exception() is not None):
                        yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _read_ahead(
        self, networks: Sequence[BagModel], bags: Bags, items: Sequence[Item], scoring: _Scoring | None
    ) -> Generator[Predicted]:
        done = 0
        while done < len(items):
            steps = [item.rows for item in items[done:]]
            with read_ahead(bags, steps, device=self.device) as batches:
                while done < len(items):
                    item = items[done]
                    outcome = self._guarded(item, lambda: next(batches), networks, scoring)
                    done += 1
                    yield outcome
                    if outcome.error:
                        break  # the reader has ended

    def _guarded(
        self,
        item: Item,
        load: Callable[[], PackedBags],
        networks: Sequence[BagModel],
        scoring: _Scoring | None,
    ) -> Predicted:
        try:
            return _predict(item, load(), networks, scoring if item.is_scored else None)
        except (MhimdistError, OSError) as error:
            if not self.skip_bad:
                raise
            return Predicted(item, None, f"{type(error).__name__}: {error}")


@torch.inference_mode()
@denormals.flushed()
def _predict(
    item: Item, packed: PackedBags, networks: Sequence[BagModel], scoring: _Scoring | None
) -> Predicted:
    packed = replace(packed, labels_B=packed.labels_B.clamp_min(0))  # an unknown label is below 0
    bag = as_one(packed, item.key)
    outputs: list[BagOutput] = []
    if item.how == "attention":
        each = [_by_attention(network, packed, bag) for network in networks]
    else:
        outputs = [network(bag) for network in networks]
        each = [network.predictions(out)[0] for network, out in zip(networks, outputs, strict=True)]
    probabilities_MC = torch.stack([one_C.double().cpu() for one_C in each]).numpy()
    if not np.isfinite(probabilities_MC).all():
        raise NonFiniteError(f"the probabilities of {item.what} {item.name!r} are not finite")
    if scoring is not None:
        attention = [
            _mean_of_heads(network.attention_weights(bag, output))
            for network, output in zip(networks, outputs, strict=True)
        ]
        instances = [network.instance_probabilities(bag) for network in networks]
        teachers = [
            None if network is None else _mean_of_heads(network.attention_weights(bag, network(bag)))
            for network in scoring.teachers
        ]
        scoring.keep(
            item, probabilities_MC, InstanceScores(_mean(attention), _mean(instances), _mean(teachers))
        )
    return Predicted(item, probabilities_MC)


def _by_attention(network: BagModel, packed: PackedBags, bag: PackedBags) -> Tensor:
    """The predictions of a case, P: the mean over its slides, each weighted by its share of the attention.

    The shares are those of a network that sees all slides as one bag, mean over its heads.

    Args:
        network: the network.
        packed: the slides.
        bag: the same instances as one bag.

    Raises:
        ConfigError: the network has no attention.
    """
    weights_NH = network.attention_weights(bag, network(bag))
    if weights_NH is None:
        raise ConfigError(
            f"--cases attention: {type(network).__name__} has no attention; take mean, max or union"
        )
    parts = weights_NH.double().mean(1).split(packed.sizes())
    shares_S = torch.stack([part.sum() for part in parts])
    predictions_SP = network.predictions(network(packed)).double()
    return (shares_S / shares_S.sum()) @ predictions_SP


def _mean_of_heads(weights_NH: Tensor | None) -> Tensor | None:
    return None if weights_NH is None else weights_NH.double().mean(1)


def _mean(parts: Sequence[Tensor | None]) -> np.ndarray | None:
    """The mean over the networks, in float32; None if a network has no value."""
    known = [part.double() for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return torch.stack(known).mean(0).float().cpu().numpy()


def _load(bags: Bags, item: Item, own: threading.local) -> PackedBags:
    """The bags of an item, in memory that the thread fills again and again: new pages take longer.

    Raises:
        DataError: they need more memory than this process can have.
    """
    num_rows = int(bags.sizes_N[list(item.rows)].sum())
    if len(getattr(own, "held_TD", ())) < num_rows:
        own.held_TD = torch.empty(0)  # before the larger one is asked for
        num_bytes = num_rows * bags.num_features * torch.float32.itemsize
        memory.require(num_bytes, memory.describe(bags, item.rows, torch.float32))
        own.held_TD = torch.empty((num_rows, bags.num_features))
    return bags.load(item.rows, out=own.held_TD)
