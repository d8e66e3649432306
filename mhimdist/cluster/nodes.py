"""What the nodes of a cluster lend and what a run takes of them. Nothing here knows Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Node:
    """What a node of the cluster lends to Ray.

    Attributes:
        cpus, gpus, memory_bytes: of them.
        is_up: False for a node that the autoscaler adds once runs wait for it.
    """

    cpus: float
    gpus: float
    memory_bytes: int
    is_up: bool = True


@dataclass(frozen=True)
class Share:
    """What Ray keeps for a run.

    Attributes:
        cpus: CPU cores, and compute threads.
        gpus: GPUs, less than one where runs share it.
        memory_bytes: of the node; 0 where nobody has measured what the run takes.
    """

    cpus: float
    gpus: float
    memory_bytes: int = 0

    @property
    def options(self) -> dict[str, float]:
        """As options of a task or an actor of Ray."""
        found = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return found | ({"memory": self.memory_bytes} if self.memory_bytes else {})

    @property
    def bundle(self) -> dict[str, float]:
        """As a bundle of a placement group of Ray."""
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes)}
        return {name: amount for name, amount in found.items() if amount or name == "CPU"}

    def fits(self, node: Node) -> dict[str, int]:
        """How many such shares a node has, by each of what it lends."""
        amounts = {
            "CPU cores": (node.cpus, self.cpus),
            "memory": (node.memory_bytes, self.memory_bytes),
            "GPUs": (node.gpus, self.gpus),
        }
        return {name: int(has / takes + 1e-9) for name, (has, takes) in amounts.items() if takes}


def addable_nodes(config: Mapping[str, Any], existing: Sequence[str]) -> tuple[list[Node], list[str]]:
    """The nodes that an autoscaler may add to those that are there.

    Args:
        config: what it was started with, in the form of `cluster.yaml`.
        existing: the node type of every worker node that is there, "" where Ray does not say.

    Returns:
        The nodes, and the names of node types that declare no memory: the autoscaler takes them for nodes
        that have none, and adds none for a run that asks for some.
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
        amounts: what each node has.
        count: at least 1.
    """
    fitting = (
        amount / parts
        for amount in amounts
        for parts in range(1, count + 1)
        if amount and sum(int(other * parts / amount + 1e-9) for other in amounts) >= count
    )
    return max(fitting, default=0.0)
