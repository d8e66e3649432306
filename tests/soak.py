"""Training and a sweep under random faults, checked all along: python tests/soak.py --minutes 60 --seed 0.

Two threads share two cores. One trains run after run, the other one runs a sweep again and again; each is
killed, stopped, starved of disk or given damaged files at random, seeded moments, and started again until it
ends. What it left must then be what an undisturbed run leaves, bit for bit. See docs/security.md.
"""

import argparse
import json
import math
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from soak_checks import Broken, same_sweep, same_training
from soak_processes import MARK, Keeper
from soak_sweep import SweepSoak
from soak_training import TrainingSoak

ROOT = Path(__file__).parents[1]
SETTLE_S = 90.0


class Soak:
    """The state that both threads share: time, chance, what was done and what broke."""

    def __init__(self, work: Path, minutes: float, seed: int) -> None:
        self.work, self.seed = work, seed
        self.minutes, self.ends = minutes, math.inf
        self.keeper = Keeper(f"{work.name}-{seed}")
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        self.commit = commit.stdout.strip()
        self.done: Counter[str] = Counter()
        self.broken: list[str] = []
        self.lock = threading.Lock()

    def begin(self) -> None:
        """Count the minutes from now on: what the disturbed runs are compared with is there."""
        self.ends = time.monotonic() + 60 * self.minutes

    @property
    def is_over(self) -> bool:
        """Whether no further fault is to be injected."""
        return time.monotonic() > self.ends or bool(self.broken)

    def chance(self, name: str) -> random.Random:
        """The random numbers of a thread."""
        return random.Random(f"{self.seed} {name}")

    def count(self, what: str) -> None:
        """Note a fault, a start or a finished run."""
        with self.lock:
            self.done[what] += 1

    def guarded(self, act) -> None:
        """Run a thread's work; what breaks ends the soak."""
        try:
            act()
        except Broken as error:
            self.broken.append(str(error))
        except BaseException as error:
            self.broken.append(f"{type(error).__name__}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="how long faults are injected")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments")
    parser.add_argument("--only", choices=["training", "sweep"], help="leave out the other part")
    parser.add_argument("--out", type=Path, default=Path("soak.json"), help="receives the summary")
    given = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("asked to stop")
    )  # its processes and its disk go with it
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as work:
        soak = Soak(Path(work), given.minutes, given.seed)
        with soak.keeper, TrainingSoak(soak, same_training) as training:
            parts = {"training": training.run, "sweep": SweepSoak(soak, same_sweep).run}
            threads = [
                threading.Thread(target=soak.guarded, args=(part,))
                for name, part in parts.items()
                if given.only in (None, name)
            ]
            if given.only == "training":
                soak.begin()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            soak.guarded(lambda: soak.keeper.settle(SETTLE_S))
        found = summary(soak, time.monotonic() - started)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(text(found))
    sys.exit(bool(soak.broken))


def summary(soak: Soak, duration_s: float) -> dict:
    """What the soak did and found, as JSON."""
    kinds = sorted({name.partition(" ")[0] for name in soak.done})
    return {
        "commit": soak.commit,
        "seed": soak.seed,
        "asked": soak.minutes,
        "minutes": round(duration_s / 60, 1),
        **{
            kind: {n.partition(" ")[2]: c for n, c in sorted(soak.done.items()) if n.startswith(kind)}
            for kind in kinds
        },
        "needs": soak.keeper.report(),
        "skipped": soak.keeper.skipped,
        "broken": soak.broken,
    }


def text(found: dict) -> str:
    """The summary for people."""
    lines = [f"soak of {found['minutes']} min, seed {found['seed']}, commit {found['commit'][:12]}"]
    for kind in ("finished", "fault", "start"):
        counts = found.get(kind, {})
        title = kind if kind == "finished" else f"{kind}s"
        lines.append(f"{title:10} " + (", ".join(f"{n} {name}" for name, n in counts.items()) or "none"))
    lines += [f"{name:10} {value}" for name, value in found["needs"].items()]
    lines += [f"skipped    {reason}" for reason in found["skipped"]]
    lines += [f"BROKEN     {reason}" for reason in found["broken"]] or [
        "nothing was lost, doubled or changed"
    ]
    return "\n".join(lines)


__all__ = ["MARK", "Soak"]

if __name__ == "__main__":
    main()
