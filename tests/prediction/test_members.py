"""Which networks of a folder vote: the folds and seeds of one configuration."""

import json
import shutil

import pytest
from trained_folds import config_of, train_folds

from mhimdist.errors import CheckpointError, ConfigError
from mhimdist.prediction.members import find_members

MASKED = {
    "teacher": {"kind": "init_momentum", "momentum": {"start": 0.9}},
    "masking": {"high": 0.1, "random": 0.3},
    "loss": {"alpha": 0.5},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory, shards):
    """A cross-validation of a masked network, the plain one, two seeds each, and two protocols."""
    folder = tmp_path_factory.mktemp("both") / "cv"
    masked = config_of(**MASKED, epochs=1)
    for config, digest in ((masked, "aa"), (masked.first_stage(), "bb")):
        for seed in (1, 2):
            train_folds(folder, shards, config.model_copy(update={"seed": seed}), digest=f"{digest}{seed}")
    train_folds(folder, shards, masked.model_copy(update={"seed": 1}), digest="cc", paper=True)
    return folder


def test_the_masked_network_under_strict_votes(both):
    members = find_members([both])
    assert {member.name for member in members} == {"MHIM (abmil)"}
    assert {member.protocol for member in members} == {"strict"}
    assert sorted((member.fold, member.seed) for member in members) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len({member.recipe for member in members}) == 1


def test_what_a_nested_search_chose_votes_before_what_stands_beside_it(both, tmp_path):
    folder = tmp_path / "nested"
    shutil.copytree(both, folder)
    for result in folder.glob("folds/*cc*/result.json"):
        said = json.loads(result.read_text())
        result.write_text(json.dumps(said | {"protocol": "nested"}))
    assert {member.protocol for member in find_members([folder])} == {"nested"}


def test_another_candidate_is_asked_for_by_name_or_digest(both):
    plain = find_members([both], "abmil")
    assert ({member.name for member in plain}, len(plain)) == ({"abmil"}, 4)
    assert find_members([both], plain[0].recipe[:6]) == plain
    with pytest.raises(
        ConfigError, match=r"no configuration is called 'dsmil'.*MHIM \(abmil\), [0-9a-f]{16}"
    ):
        find_members([both], "dsmil")


def test_a_single_fold_and_several_folders(both):
    folds = sorted((both / "folds").iterdir())
    assert [member.folder for member in find_members([folds[0]])] == [folds[0]]
    assert len(find_members([folds[0], folds[0], folds[1]])) == 2


def test_a_sweep_is_its_final_runs(both, tmp_path):
    sweep = tmp_path / "sweep"
    shutil.copytree(both / "folds", sweep / "final")
    assert len(find_members([sweep])) == 4


def test_two_searched_configurations_need_a_choice(both, shards, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(both, folder)
    train_folds(folder, shards, config_of(**{**MASKED, "masking": {"high": 0.2}}, epochs=1), digest="dd")
    with pytest.raises(
        ConfigError, match=r"expected one configuration; give --candidate .* folds under strict"
    ):
        find_members([folder])


def test_an_unfinished_fold_is_named(both, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(both, folder)
    first = min((folder / "folds").iterdir())
    shutil.rmtree(first / "best_student")
    with pytest.raises(CheckpointError, match=f"1 of 10 folds are not finished, the first is {first.name}"):
        find_members([folder])
    with pytest.raises(CheckpointError, match="holds no trained model: expected a finished fold"):
        find_members([tmp_path])


def test_damaged_weights_are_named(both, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(both, folder)
    weights = next((folder / "folds").glob("*aa1/best_student/student.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: expected sha256"):
        find_members([folder])


def test_a_student_of_an_earlier_release_has_the_threshold_of_its_result(both, tmp_path):
    folder = tmp_path / "cv"
    shutil.copytree(both, folder)
    (new,) = find_members([min((folder / "folds").iterdir())])
    file = new.folder / "best_student" / "state.json"
    body = json.loads(file.read_text())
    for name in ("threshold", "threshold_from", "features"):
        del body["state"][name]
    del body["state_sha256"]
    file.write_text(json.dumps(body))
    (old,) = find_members([new.folder])
    assert (old.threshold, old.threshold_from) == (new.threshold, new.threshold_from)
    assert old.features == {}
