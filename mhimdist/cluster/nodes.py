"""The nodes of a cluster, and the share of a node that a run takes. Nothing here knows Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Node:
    """The resources of a node that Ray may use.

    Attributes:
        cpus, gpus: their numbers.
        memory_bytes: bytes of memory.
        is_up: False for a node that the autoscaler adds once runs wait for it.
    """

    cpus: float
    gpus: float
    memory_bytes: int
    is_up: bool = True


@dataclass(frozen=True)
class Share:
    """The resources that Ray reserves for a run.

    Attributes:
        cpus: CPU cores, and compute threads.
        gpus: GPUs; less than 1 if runs share one.
        memory_bytes: bytes of the node's memory; 0 if the run has not been measured.
    """

    cpus: float
    gpus: float
    memory_bytes: int = 0

    @property
    def options(self) -> dict[str, float]:
        """The share as options of a Ray task or actor."""
        found = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return found | ({"memory": self.memory_bytes} if self.memory_bytes else {})

    @property
    def bundle(self) -> dict[str, float]:
        """The share as a bundle of a Ray placement group."""
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes)}
        return {name: amount for name, amount in found.items() if amount or name == "CPU"}

    def fits(self, node: Node) -> dict[str, int]:
        """How many such shares fit on a node, by the name of each resource that the share takes."""
        amounts = {
            "CPU cores": (node.cpus, self.cpus),
            "memory": (node.memory_bytes, self.memory_bytes),
            "GPUs": (node.gpus, self.gpus),
        }
        return {name: int(has / takes + 1e-9) for name, (has, takes) in amounts.items() if takes}


def addable_nodes(config: Mapping[str, Any], existing: Sequence[str]) -> tuple[list[Node], list[str]]:
    """The nodes that an autoscaler may add to the existing ones.

    Args:
        config: the autoscaler's configuration, in the form of `cluster.yaml`.
        existing: the node type of every existing worker node; "" if Ray does not say.

    Returns:
        The nodes, and the names of node types that declare no memory. The autoscaler treats these as nodes
        without memory, and never adds them for a run that reserves some.
    """
    most = config.get("max_workers", 0)
    nodes: list[Node] = []
    without_memory = []
    for name, kind in config.get("available_node_types", {}).items():
        declared = kind.get("resources") or {}
        if name == config.get("head_node_type") or not declared.get("CPU"):
            continue
        num = min(kind.get("max_workers", most) - existing.count(name), most - len(existing) - len(nodes))
        if num > 0 and not declared.get("memory"):
            without_memory.append(name)
        elif num > 0:
            gpus = declared.get("GPU", 0)
            nodes += [Node(declared["CPU"], gpus, int(declared["memory"]), is_up=False)] * num
    return nodes, without_memory


def largest_equal_part(amounts: Sequence[float], count: int) -> float:
    """The most that each of `count` runs can be given at the same time, each on one node.

    Args:
        amounts: the amount that each node has.
        count: number of runs, at least 1.
    """
    fitting = (
        amount / parts
        for amount in amounts
        for parts in range(1, count + 1)
        if amount and sum(int(other * parts / amount + 1e-9) for other in amounts) >= count
    )
    return max(fitting, default=0.0)
