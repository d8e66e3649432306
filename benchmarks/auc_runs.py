"""The runs of `time_to_auc`: ways of feeding the bags, on two data sets, with two networks."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.packs import Packing
from mhimdist.config.presets import digits_preset
from mhimdist.config.train import TrainConfig

ONE, PACKS = "one bag a step", "packs"
NETWORKS = {"abmil": "AB-MIL", "mhim": "MHIM (AB-MIL)"}


@dataclass(frozen=True)
class Data:
    """A data set of the benchmark, and what belongs to its sizes.

    Attributes:
        bags_per_step: of the settings with several bags per step.
        sample: instances of a sample of a bag.
        packing: of the packs.
        epochs: of each run.
        num_bags: to build; None builds all.
        scale: of the sizes relative to the data set's usual ones.
        features: width of planted features.
        strength: of the planted signal, see `planted_bags.build`.
    """

    bags_per_step: int
    sample: int
    packing: Packing
    epochs: int
    num_bags: int | None = None
    scale: float = 1.0
    features: int = 512
    strength: float = 1.5


DATA = {
    # The digits' bags have 1/20 of a slide's size, so their packs do, too.
    "digits-c16": Data(8, 128, Packing(length=120, smallest=6), epochs=25),
    "planted": Data(4, 2048, Packing(), epochs=10, num_bags=48),
}
QUICK = {
    "digits-c16": Data(4, 8, Packing(length=16, smallest=2), epochs=2, num_bags=80, scale=0.02),
    "planted": Data(4, 32, Packing(length=64, smallest=8), epochs=2, num_bags=12, scale=0.01, features=16),
}
SETTINGS = (
    ONE,
    "several, rate as for one",
    "several, rate by sqrt",
    "several, rate linear",
    "samples",
    "samples, several, rate by sqrt",
    "one bag a step, bf16",
    PACKS,
)


def changes(setting: str, data: Data) -> dict[str, Any]:
    """What a setting changes in the configuration."""
    rules = {"several, rate as for one": "none", "several, rate linear": "linear"}
    found: dict[str, Any] = {}
    if "several" in setting or setting == PACKS:
        found |= {"bags_per_step": data.bags_per_step, "optimizer.rate_rule": rules.get(setting, "sqrt")}
    if "samples" in setting:
        found["instances_per_bag"] = data.sample
    if "bf16" in setting:
        found["precision"] = "bf16"
    return found


@dataclass(frozen=True)
class Run:
    """One run of the benchmark.

    Attributes:
        data: a key of `DATA`.
        network: a key of `NETWORKS`.
        setting: one of `SETTINGS`.
        seed: of the split and of the training.
        config: the whole configuration.
        spec: of the data.
    """

    data: str
    network: str
    setting: str
    seed: int
    config: TrainConfig
    spec: Data

    @property
    def name(self) -> str:
        """The run's file, which another configuration or another build of the data does not share."""
        parts = [self.config.recipe(), asdict(self.spec), self.setting, self.network]
        digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=6).hexdigest()
        words = "-".join(self.setting.replace(",", "").split())
        return f"{self.data}--{self.network}--{words}--seed-{self.seed}--{digest}"


def runs(
    data: Mapping[str, Data],
    networks: Sequence[str],
    settings: Sequence[str],
    seeds: int,
    device: str = "cpu",
) -> list[Run]:
    """All runs in the order in which they take turns: a first stage comes before what it teaches."""
    found = []
    for seed in range(seeds):
        for name, spec in data.items():
            base = digits_preset("c16", "abmil").override({"device": device, "precision": "float32"})
            base = base.override({"epochs": spec.epochs, "seed": seed})
            for setting in settings:
                config = base.override(changes(setting, spec))
                for network in networks:
                    if network == "abmil":
                        found.append(Run(name, network, setting, seed, config.first_stage(), spec))
                    elif setting != PACKS:
                        found.append(Run(name, network, setting, seed, config, spec))
    return found
