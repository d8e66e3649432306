"""Forged settings: as trees, as JSON and as options; one line says what is wrong."""

import json
from pathlib import Path

import pytest
from fuzzing import CASES, forged, fuzz
from hypothesis import strategies as st

from mhimdist import files
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig, load_config
from mhimdist.errors import ConfigError, MhimdistError

TREE = json.loads(preset("c16", "abmil").model_dump_json())
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        [0, -1, 2**63, 10**400, float("nan"), float("inf"), 1e308, "abmil", "transmil", "auto", ""]
    )
    | st.floats()
    | st.text(max_size=8)
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def _paths(tree: object, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [above] if above else []
    if isinstance(tree, dict):
        found += [path for name, inner in tree.items() for path in _paths(inner, (*above, name))]
    return found


def _with(changes: list[tuple[tuple[str, ...], object]]) -> dict:
    tree = json.loads(json.dumps(TREE))
    for (*parents, name), value in changes:
        place = tree
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[name] = value
    return tree


CHANGED = st.lists(st.tuples(st.sampled_from(_paths(TREE)), VALUES), min_size=1, max_size=4).map(_with)
TREES = CHANGED | st.dictionaries(st.sampled_from(list(TREE)) | st.text(max_size=9), VALUES, max_size=6)


@pytest.mark.faults(52)
@CASES
def test_forged_trees_of_settings(num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read(tree: dict) -> None:
        config = load_config(tree)
        assert load_config(json.loads(config.model_dump_json())) == config
        assert config.digest()

    fuzz(num_cases, TREES, read)


@pytest.mark.faults(52)
@CASES
def test_forged_json_of_settings(num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read(content: bytes) -> None:
        Path("config.json").write_bytes(content)
        load_config(files.json_object(Path("config.json"), ConfigError))

    fuzz(num_cases, forged([json.dumps(TREE).encode()]), read)


@pytest.mark.faults(52)
@CASES
def test_forged_overrides(num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = preset("c16", "abmil")
    names = st.sampled_from([".".join(path) for path in _paths(TREE)]) | st.text(max_size=12)

    def read(changes: dict) -> TrainConfig:
        return base.override(changes)

    fuzz(num_cases, st.dictionaries(names, VALUES, max_size=3), read, allowed=(MhimdistError,))
