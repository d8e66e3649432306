"""Forged files of settings and forged overrides: one line says what is wrong, and nothing runs."""

from pathlib import Path

import pytest
from fuzzing import forged, fuzz
from hypothesis import strategies as st

from mhimdist.run_files.read import read_job

VALID = b"""\
kind: tune
name: "first"
data: digits-c16
seeds: [1, 2]
gpus_per_run: none
train:
  model: &model {name: abmil, gated: true}
  task: {name: custom, entry: 'a:B', options: {a: 5e-4, b: no}}
  masking:
    high: {start: 1e-2, kind: cosine}
    low: 0.0
  optimizer: {learning_rate: 5.0e-4}
space:
  masking.high: {schedule: [0.002, 0.2], log: true}
  masking.strategy:
    branch:
      HAM: {masking.low: {fix: 0.0}}
      L-HAM: {masking.low: {schedule: [0.1, 0.8], kinds: [step]}}
  keep_at_least: 0.1
  epochs: {choice: {10: , 20: {model.gated: {choice: [true, false]}}}}
  bags_per_step: {integer: [1, 8]}
"""
ODD = [
    b"!!python/object/apply:os.system ['touch x']",
    b"!!binary aGk=",
    b"&a [*a]",
    b"*model",
    b"<<: *model",
    b"? - : ",
    b"---\n",
    b"%TAG ! x\n",
    b'"\\ud800\\x00"',
    b"- " * 200,
    b"{a: " * 200,
    b"9" * 5000,
    b".nan",
    b"1e999",
    b"0o17",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xae",
]
CASES = pytest.mark.parametrize(
    "num_cases", [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.fuzz])]
)


def _with_odd(content: bytes, odd: bytes, share: float) -> bytes:
    at = int(share * len(content))
    at = content.rfind(b":", 0, at) + 1 if share > 0.1 else at
    return content[:at] + b" " + odd + content[at:]


FILES = forged([VALID]) | st.builds(
    _with_odd, forged([VALID]) | st.just(VALID), st.sampled_from(ODD), st.floats(0, 1)
)
NAMES = st.sampled_from(
    [
        *("train.epochs", "seeds", "seeds.0", "train.masking.high", "train.model.name", "name", "kind"),
        *("space.masking.high.schedule.0", "space.epochs.choice", "space.keep_at_least", "train", "space"),
    ]
)
OVERRIDES = st.lists(
    st.builds(
        "{}={}".format, NAMES | st.text(max_size=12), st.text(max_size=20) | st.sampled_from(["[", "{a: 1}"])
    ),
    max_size=3,
)


@pytest.mark.faults(52)
@CASES
def test_forged_files_of_settings(num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_job("tune", _file(tmp_path / "valid.yaml", VALID)).space is not None
    (tmp_path / "valid.yaml").unlink()

    def read(case: tuple[bytes, list[str]]) -> None:
        content, overrides = case
        read_job("tune", _file(Path("forged.yaml"), content), overrides)

    fuzz(num_cases, st.tuples(FILES, st.just([]) | OVERRIDES), read)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
