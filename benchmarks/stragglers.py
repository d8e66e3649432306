"""The cost of uneven bags when many workers step together, simulated with CAMELYON16's real bag sizes.

A step lasts as long as its largest rank. The cost of an epoch is the sum over its steps of the most instances
that any rank has, divided by the sum of the means: 1 is perfect, 2 means that half of the machine waits.
Three ways are compared:

- torch's DistributedSampler with one bag per rank and step, as in DDP scripts;
- plain random: as many bags per step as ours has on average, dealt to the ranks in the order drawn;
- ours: steps of at most `max_instances` instances, the largest bags dealt out first (`epoch_plan`).

The last two make about equally many steps. For many ranks the data set repeats CAMELYON16's sizes at random,
until every rank has 16 bags per epoch.

    python -m benchmarks.stragglers [--json]
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import numpy as np
from rich.console import Console
from rich.table import Table
from torch.utils.data import DistributedSampler

from mhimdist.data.sampler import epoch_order, epoch_plan

FACTS = Path(__file__).parent.parent / "data_prep" / "c16_facts.json"
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
INSTANCES_PER_RANK = 50_000  # the largest bag has 44,402
BAGS_PER_RANK = 16
NUM_EPOCHS = 3
SEED = 2021


def bag_sizes(num_ranks: int) -> np.ndarray:
    """Instances of every bag: the real sizes and, for many ranks, more drawn from them."""
    sizes = np.array(json.loads(FACTS.read_text())["bag_sizes"])
    missing = max(0, BAGS_PER_RANK * num_ranks - len(sizes))
    return np.concatenate([sizes, np.random.default_rng(SEED).choice(sizes, missing)])


def distributed_sampler(sizes: np.ndarray, num_ranks: int, epoch: int) -> np.ndarray:
    """Loads S x W with torch's DistributedSampler, which repeats bags so that all ranks have equally many."""
    columns = []
    for rank in range(num_ranks):
        sampler = DistributedSampler(range(len(sizes)), num_ranks, rank, seed=SEED)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        columns.append(sizes[list(sampler)])
    return np.stack(columns, axis=1)


def plain_random(sizes: np.ndarray, num_ranks: int, epoch: int, num_steps: int) -> np.ndarray:
    """Loads S x W if a random order is cut into steps of equally many bags, dealt like cards."""
    order = epoch_order(len(sizes), seed=SEED, epoch=epoch)
    loads_SW = np.zeros((num_steps, num_ranks), np.int64)
    for step, bags in enumerate(np.array_split(order, num_steps)):
        np.add.at(loads_SW[step], np.arange(len(bags)) % num_ranks, sizes[bags])
    return loads_SW


def ours(sizes: np.ndarray, num_ranks: int, epoch: int) -> np.ndarray:
    """Loads S x W of `epoch_plan`."""
    plan = epoch_plan(
        sizes,
        seed=SEED,
        epoch=epoch,
        bags_per_step=len(sizes),
        max_instances=INSTANCES_PER_RANK * num_ranks,
        world_size=num_ranks,
    )
    return plan.loads_SW(sizes)


def cost(loads_SW: np.ndarray) -> float:
    """Instances of the largest ranks, divided by those of an even deal."""
    return float(loads_SW.max(1).sum() / loads_SW.mean(1).sum())


def spread(loads_SW: np.ndarray) -> float:
    """Range of the ranks' totals in an epoch, as a share of their mean."""
    totals = loads_SW.sum(0)
    return float((totals.max() - totals.min()) / totals.mean())


def simulate(num_ranks: int) -> dict[str, float | int]:
    """Costs and spreads for a number of ranks, means over epochs, and our worst cost."""
    sizes = bag_sizes(num_ranks)
    mine = [ours(sizes, num_ranks, epoch) for epoch in range(NUM_EPOCHS)]
    random = [plain_random(sizes, num_ranks, epoch, len(mine[epoch])) for epoch in range(NUM_EPOCHS)]
    torchs = [distributed_sampler(sizes, num_ranks, epoch) for epoch in range(NUM_EPOCHS)]
    return {
        "ranks": num_ranks,
        "bags": len(sizes),
        "steps": len(mine[0]),
        "distributed_sampler": round(mean(map(cost, torchs)), 3),
        "plain_random": round(mean(map(cost, random)), 3),
        "ours": round(mean(map(cost, mine)), 3),
        "ours_worst": round(max(map(cost, mine)), 3),
        "distributed_sampler_spread": round(mean(map(spread, torchs)), 4),
        "plain_random_spread": round(mean(map(spread, random)), 4),
        "ours_spread": round(mean(map(spread, mine)), 4),
    }


def print_table(rows: list[dict]) -> None:
    """Print the rows for a person."""
    table = Table(
        title="Cost of stragglers: work of each step's largest rank over the mean",
        caption=f"At most {INSTANCES_PER_RANK:,} instances per rank and step. Spread: of the ranks' totals.",
    )
    for name in ("ranks", "bags", "steps", "DistributedSampler", "random", "ours", "worst", "ours, spread"):
        table.add_column(name, justify="right")
    for row in rows:
        values = (row["distributed_sampler"], row["plain_random"], row["ours"], row["ours_worst"])
        table.add_row(
            f"{row['ranks']:,}",
            f"{row['bags']:,}",
            str(row["steps"]),
            *(f"{value:.2f}" for value in values),
            f"{row['ours_spread']:.1%}",
        )
    Console(width=100).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stragglers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows = [simulate(num_ranks) for num_ranks in RANKS]
    if options.json:
        print(json.dumps({"instances_per_rank": INSTANCES_PER_RANK, "rows": rows}))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
