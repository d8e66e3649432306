import json

import optuna
import pytest

from mhimdist.config.presets import preset
from mhimdist.errors import SweepError
from mhimdist.search import storage
from mhimdist.search.options import STORAGE_VARIABLE, Sweep
from mhimdist.sweep.folder import SweepFolder

BASE = preset("c16", "abmil")
SECRET = "tok3n"
FIRST = [{"loss.alpha": 0.1}, {"loss.alpha": 1 / 3}]


def _claim(home, made_of="a", first=FIRST, **options) -> SweepFolder:
    folder = SweepFolder(Sweep(home=home, name="test", train=BASE, **options))
    with folder.sweep.driving():
        folder.claim({"space": made_of}, first)
    return folder


def test_a_folder_keeps_what_it_began_with(tmp_path):
    folder = SweepFolder(Sweep(home=tmp_path, name="test", train=BASE))
    assert folder.first_params is None
    begun = _claim(tmp_path)
    assert begun.first_params == FIRST
    owner = begun.owner
    again = _claim(tmp_path, first=[])
    assert again.first_params == FIRST
    assert again.owner == owner
    assert SweepFolder(Sweep(home=tmp_path, name="test", train=BASE, fresh=True)).first_params is None
    with pytest.raises(SweepError, match="holds another sweep \\(space 'a', now 'b'\\)"):
        _claim(tmp_path, "b")
    assert _claim(tmp_path, "b", fresh=True).owner.id != owner.id


def test_a_sweep_of_an_earlier_release_is_refused_by_name(tmp_path):
    file = _claim(tmp_path).path / "sweep.json"
    old = json.loads(file.read_text())
    del old["layout"]
    file.write_text(json.dumps(old))
    with pytest.raises(SweepError, match=r"test was written by an earlier release, .*--name, or --fresh"):
        _claim(tmp_path)
    assert _claim(tmp_path, fresh=True).owner.id != old["id"]


def test_a_password_is_kept_nowhere_and_may_be_another_one_later(tmp_path, monkeypatch):
    url = f"postgresql://ada:{SECRET}@db/studies"
    folder = _claim(tmp_path, storage=url)
    assert SECRET not in (folder.path / "sweep.json").read_text()
    assert SECRET not in repr(folder.sweep)
    assert folder.url == url
    monkeypatch.setenv(STORAGE_VARIABLE, url.replace(SECRET, "an0ther"))
    assert _claim(tmp_path).url == "postgresql://ada:an0ther@db/studies"
    with pytest.raises(SweepError, match=r"storage 'postgresql://ada:\*\*\*@db/studies', now None"):
        _claim(tmp_path, storage=None)


def test_fresh_deletes_only_the_study_that_is_its_own(tmp_path):
    url = storage.sqlite_url(tmp_path / "shared.db")
    folder = _claim(tmp_path, storage=url)
    storage.create(url, "test", storage.Owner("b2", "/home/bob/runs/test", is_alone=False), ["maximize"])
    (folder.path / "trials").mkdir()
    with pytest.raises(SweepError, match="belongs to the sweep in /home/bob/runs/test"):
        _claim(tmp_path, storage=url, fresh=True)
    assert (folder.path / "trials").exists()
    storage.delete(url, "test", "b2")
    storage.create(url, "test", folder.owner, ["maximize"])
    _claim(tmp_path, storage=url, fresh=True)
    assert not (folder.path / "trials").exists()
    assert optuna.get_all_study_names(storage.open_storage(url)) == []
    assert json.loads((folder.path / "sweep.json").read_text())["id"] != "b2"
