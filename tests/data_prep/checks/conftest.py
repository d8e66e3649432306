"""A data set that is as it was written, for the tests to damage."""

from pathlib import Path

import pytest
from feature_folders import shard_folder, write_features


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("pristine")
    write_features(folder)
    return {path.name: path.read_bytes() for path in shard_folder(folder).iterdir()}


@pytest.fixture
def shards(pristine: dict[str, bytes], tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, content in pristine.items():
        (folder / name).write_bytes(content)
    return folder
