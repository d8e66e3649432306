"""Training on batches that a thread copies ahead equals training on batches that wait on the device."""

import torch
from torch import Tensor

from benchmarks.gpu_check.measure import sync
from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.workload import MemoryBags, config_of, step_of, weights_of
from mhimdist.data.read_ahead import read_ahead
from mhimdist.ops.draws import Draws

_DTYPE = torch.bfloat16
_NUM_BAGS = 12


def check(notes: Notes, setting: Setting) -> None:
    """Train again and again, plain and by graphs, on steps of one bag and, except TransMIL, of two."""
    torch.set_num_threads(1)
    for model in ("abmil", "dsmil", "transmil"):
        for graphs in (False, True):
            name = f"{model}, {'graphs' if graphs else 'plain'}"
            if graphs and not setting.is_gpu:
                notes.leave_out(name, "needs a GPU")
                continue
            with notes.trying(name):
                _compare(notes, setting, name, model, graphs)


def _compare(notes: Notes, setting: Setting, name: str, model: str, graphs: bool) -> None:
    bags = MemoryBags(setting, _NUM_BAGS, torch.float16)
    first, again = (_train(setting, bags, model, graphs, ahead=False) for _ in range(2))
    repeats = torch.equal(first, again)
    times = 4 if setting.is_gpu else 1
    ahead = [_train(setting, bags, model, graphs, ahead=True) for _ in range(times)]
    differences = [float((each - first).abs().max()) for each in ahead]
    # Where the device does not repeat itself, no more can be asked of reading ahead than of waiting.
    allowed = 0.0 if repeats else 10 * float((again - first).abs().max())
    finite = all(bool(each.isfinite().all()) for each in ahead)
    notes.check(
        name,
        finite and max(differences) <= allowed,
        {
            "the same when repeated": repeats,
            "largest difference of a weight": differences,
            "allowed": allowed,
        },
    )


def _train(setting: Setting, bags: MemoryBags, model: str, graphs: bool, *, ahead: bool) -> Tensor:
    """Train for some steps and return the weights."""
    step = step_of(setting, config_of(setting, model, "bf16", graphs=graphs), graphs=graphs)
    single = model == "transmil"  # several bags of it cannot be recorded
    order = [
        [number % _NUM_BAGS] if number % 3 or single else [number % _NUM_BAGS, (number + 5) % _NUM_BAGS]
        for number in range(36 if setting.is_gpu else 4)
    ]
    if ahead:
        with read_ahead(bags, order, dtype=_DTYPE, device=setting.device) as batches:
            for number, batch in enumerate(batches):
                step(batch, Draws(0, number), progress=number / 36, num_bags=len(batch))
                del batch
    else:
        for number, rows in enumerate(order):
            batch = bags.load(rows, torch.float16).to(setting.device, _DTYPE)
            sync(setting)
            step(batch, Draws(0, number), progress=number / 36, num_bags=len(batch))
            sync(setting)
    step.check(wait=True)
    return weights_of(step)
