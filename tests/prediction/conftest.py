import pytest
from trained_folds import config_of, make_shards, train_folds


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """20 labelled slides of 5 cases, float32."""
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory, shards):
    """The folder of a cross-validation of two folds."""
    folder = tmp_path_factory.mktemp("trained") / "cv"
    train_folds(folder, shards, config_of())
    return folder
