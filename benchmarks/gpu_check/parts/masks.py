"""Masks and dropout are the same bits on the device, on the CPU and in the specification, at real sizes.

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, D features, H heads, E embedding width,
C columns, K kept instances, S streams.
"""

from itertools import product

import torch
from torch import Tensor

from benchmarks.gpu_check.notes import Notes
from benchmarks.gpu_check.setting import Setting
from mhimdist import ops
from mhimdist.ops import reference
from mhimdist.ops.draws import Draws

_SHARES = {
    "c16": (0.02, 0.5, 0.0, 0.5),
    "tcga": (0.04, 0.5, 0.2, 0.7),
    "all masked": (1.0, 0.5, 0.3, 1.0),
}
"""Shares of the pool, of the high mask in it, of the low and of the random mask."""


def check(notes: Notes, setting: Setting) -> None:
    """Compare masks, dropout and pooling."""
    same, wrong = 0, []
    for (case, sizes), heads, ties, shares in product(
        _cases(setting).items(), (1, 8), (False, True), _SHARES
    ):
        different = _differences(setting, sizes, heads, ties, _SHARES[shares])
        if different:
            wrong.append({"bags": case, "heads": heads, "ties": ties, "shares": shares, "differ": different})
        else:
            same += 1
        notes.check("masks", not wrong, {"equal bit for bit": same, "different": wrong})
    with notes.trying("dropout"):
        _dropout(notes, setting)
    with notes.trying("softmax pooling"):
        _pooling(notes, setting)


def _cases(setting: Setting) -> dict[str, list[int]]:
    if setting.is_gpu:
        many = [700 + 31 * number for number in range(64)]
        return {
            "one": [9000],
            "ragged": [1, 2047, 2048, 2049, 37, 9075],
            "one of 120,001": [120_001],
            "64": many,
        }
    many = [3 * number + 1 for number in range(64)]
    return {"one": [600], "ragged": [1, 15, 16, 17, 300], "one of 3,001": [3001], "64": many}


def _differences(
    setting: Setting, sizes: list[int], heads: int, ties: bool, shares: tuple[float, ...]
) -> list[str]:
    """The names of what the device computes differently."""
    generator = torch.Generator().manual_seed(heads)
    scores_TH = torch.randn(sum(sizes), heads, generator=generator)
    if ties:
        scores_TH = (scores_TH * 4).round() / 4
    features_TD = torch.randn(sum(sizes), 16, generator=generator).half()
    offsets_B1 = torch.tensor([0, *sizes]).cumsum(0)
    ids_B, draws = torch.arange(len(sizes)) * 0x123456789ABCDEF, Draws(1, 2)
    streams_S = torch.tensor([draws.stream(purpose) for purpose in ops.STREAMS])
    ratios_4 = torch.tensor(shares, dtype=torch.float64)
    given = offsets_B1, ids_B, ratios_4, streams_S
    numbers = ops.bag_numbers(*(tensor.to(setting.device) for tensor in given))
    expected = _expected_numbers(torch.tensor(sizes), ids_B, shares, draws)
    got = [*vars(numbers.counts).values(), *vars(numbers.keys).values()]
    got += [numbers.student_dropout_B, numbers.teacher_dropout_B]
    different = [
        name
        for (name, one), other in zip(expected.items(), got, strict=True)
        if not torch.equal(one, other.cpu())
    ]
    on_cpu = ops.bag_numbers(*given)
    if setting.is_gpu:
        select = ops.select(scores_TH, offsets_B1, on_cpu.counts, on_cpu.keys)
        kept_K, kept_offsets_B1 = select.kept_K, select.offsets_B1
    if not setting.is_gpu or (ties and heads > 1):  # the specification takes its time
        specified = reference.select_and_gather(
            features_TD, scores_TH, offsets_B1, on_cpu.counts, on_cpu.keys
        )
        if setting.is_gpu and not torch.equal(specified.kept_K, kept_K):
            different.append("the CPU's rows")
        kept_K, kept_offsets_B1 = specified.kept_K, specified.offsets_B1
    there = [tensor.to(setting.device) for tensor in (features_TD, scores_TH, offsets_B1)]
    found = ops.select_and_gather(*there, numbers.counts, numbers.keys, capacity=len(kept_K) + 5)
    compared = {
        "rows": (found.kept_K.cpu()[: len(kept_K)], kept_K),
        "offsets": (found.offsets_B1.cpu(), kept_offsets_B1),
        "features": (found.features_KD.cpu()[: len(kept_K)], features_TD[kept_K]),
    }
    return different + [name for name, (one, other) in compared.items() if not torch.equal(one, other)]


def _expected_numbers(
    sizes_B: Tensor, ids_B: Tensor, shares: tuple[float, ...], draws: Draws
) -> dict[str, Tensor]:
    """Counts and keys by their definition, in the order of `BagNumbers`."""
    pool_share, high_share, low_share, random_share = shares
    pool_B = reference.share_of(sizes_B, pool_share)
    counts = {
        "pool": pool_B,
        "high": reference.share_of(pool_B, high_share),
        "low": reference.share_of(sizes_B, low_share),
        "random": reference.share_of(sizes_B, random_share),
    }
    return counts | {f"key of {purpose}": draws.keys(ids_B, purpose) for purpose in ops.STREAMS}


def _dropout(notes: Notes, setting: Setting) -> None:
    sizes = [setting.num_instances, 33]
    offsets_B1 = torch.tensor([0, *sizes]).cumsum(0)
    keys_B = Draws(0, 0).keys(torch.arange(2), "student_dropout")
    values_TE = torch.randn(sum(sizes), 512, generator=torch.Generator().manual_seed(0))
    there = offsets_B1.to(setting.device), keys_B.to(setting.device)
    for dtype in (torch.float32, torch.bfloat16):
        expected_TE = reference.keyed_dropout(values_TE.to(dtype).relu(), 0.25, offsets_B1, keys_B, 0)
        found_TE = ops.relu_dropout(values_TE.to(setting.device, dtype), 0.25, *there)
        equal = torch.equal(found_TE.cpu(), expected_TE)
        name = f"dropout in {str(dtype).removeprefix('torch.')}"
        notes.check(
            name, equal, {"equal bit for bit": equal, "dropped": float((expected_TE == 0).float().mean())}
        )


def _pooling(notes: Notes, setting: Setting) -> None:
    sizes = [setting.num_instances, 33]
    offsets_B1 = torch.tensor([0, *sizes]).cumsum(0)
    generator = torch.Generator().manual_seed(0)
    scores_TC, values_TE = (torch.randn(sum(sizes), width, generator=generator) for width in (2, 512))
    there = (tensor.to(setting.device) for tensor in (scores_TC, values_TE, offsets_B1))
    found_BCE = ops.segment_softmax_pool(*there).cpu().double()
    exact_BCE = reference.segment_softmax_pool(scores_TC.double(), values_TE.double(), offsets_B1)
    error = float((found_BCE - exact_BCE).norm() / exact_BCE.norm())
    notes.check("softmax pooling", error < 1e-5, {"relative error": error, "at most": 1e-5})
