"""Forged checkpoints and weights: our errors alone come out of the readers, and nothing runs."""

import io
import os
import shutil
from pathlib import Path

import golden_values
import pytest
import torch
from fuzzing import CASES, CHANGES, changed, forged, fuzz
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_of

from mhimdist.config.models import AttentionMIL
from mhimdist.models.official import load_official
from mhimdist.training import checkpoint
from mhimdist.training.history import HISTORY, read_history
from mhimdist.training.result import read_result


class Malicious:
    """Leaves a folder behind wherever it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("../sentinel",)


@pytest.mark.faults(26, 28, 42)
@CASES
def test_forged_checkpoints(num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {"student": {"w": torch.arange(6.0)}, "optimizer": {"step.w": torch.tensor(3.0)}}
    checkpoint.save(tmp_path / "whole", tensors, {"epoch": 3, "history": [{"epoch": 0, "loss": 0.5}]})
    whole = {path.name: path.read_bytes() for path in sorted((tmp_path / "whole").iterdir())}

    def read(case: tuple[str, list]) -> None:
        shutil.rmtree("c", ignore_errors=True)
        os.mkdir("c")
        for name, content in whole.items():
            Path("c", name).write_bytes(changed(content, case[1]) if name == case[0] else content)
        checkpoint.load(Path("c"))

    names = ["state.json", "state.json", *whole]
    fuzz(num_cases, st.tuples(st.sampled_from(names), CHANGES), read)


def _pt(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.faults(27, 44)
@CASES
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_forged_weights(suffix: str, num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {k: v[..., :4].clone() for k, v in golden_values.official_weights("attn", 1000).items()}
    valid = [safetensors_of(weights)]
    if suffix == "pt":
        valid = [
            *(_pt({"model": weights}), _pt(weights, _use_new_zipfile_serialization=False)),
            _pt({"model": weights, "x": Malicious()}),
        ]

    def read(content: bytes) -> None:
        Path(f"w.{suffix}").write_bytes(content)
        load_official(Path(f"w.{suffix}"), AttentionMIL())

    fuzz(num_cases, forged(valid), read)
    assert not (tmp_path / "sentinel").exists()


RESULT = (
    b'{"protocol": "strict", "seed": 1, "fold": 1, "keys": ["a"], "labels": [0], "probabilities": [[0.5]]}'
)
ROW = b'{"epoch": 0, "loss": 0.5, "train_s": 1.0}\n'


@pytest.mark.faults(42)
@CASES
def test_forged_results_and_histories(
    num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def result(content: bytes) -> None:
        Path("result.json").write_bytes(content)
        read_result(Path("result.json"))

    def history(content: bytes) -> None:
        Path(HISTORY).write_bytes(content)
        read_history(Path())

    fuzz(num_cases, forged([RESULT]), result)
    fuzz(num_cases, forged([ROW, ROW * 2]), history)
