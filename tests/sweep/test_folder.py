import json

import optuna
import pytest

from mhimdist.config.presets import preset
from mhimdist.errors import SweepError
from mhimdist.search import storage
from mhimdist.search.options import STORAGE_VARIABLE, Sweep
from mhimdist.sweep.folder import ClockWarning, SweepFolder

BASE = preset("c16", "abmil")
SECRET = "tok3n"
DEEP = pytest.param("[" * 100_000, id="deep")
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
    _claim(tmp_path, data="moved/digits-c16")  # where the data are makes no other sweep
    said = json.loads((begun.path / "sweep.json").read_text())
    assert (said["data"], Sweep(home=tmp_path).data) == ("digits-c16", "digits-c16")
    with pytest.raises(SweepError, match="holds another sweep \\(space 'a', now 'b'\\)"):
        _claim(tmp_path, "b")
    assert _claim(tmp_path, "b", fresh=True).owner.id != owner.id


@pytest.mark.faults(40)
def test_fresh_deletes_a_link_and_not_what_it_leads_to(tmp_path):
    begun, scratch = _claim(tmp_path), tmp_path / "scratch"
    (scratch / "0").mkdir(parents=True)
    (begun.path / "trials").symlink_to(scratch)
    assert _claim(tmp_path, "b", fresh=True).owner.id != begun.owner
    assert not (begun.path / "trials").exists()
    assert (scratch / "0").is_dir()


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


@pytest.mark.faults(42)
@pytest.mark.parametrize("text", ["", "[]", '{"layout": 2', DEEP])
def test_a_torn_file_of_identity_is_named(tmp_path, text):
    folder = _claim(tmp_path)
    (folder.path / "sweep.json").write_text(text)
    for ask in (lambda: _claim(tmp_path), lambda: folder.owner, lambda: folder.first_params):
        with pytest.raises(SweepError, match=r"sweep\.json"):
            ask()
    assert _claim(tmp_path, fresh=True).owner.id


def test_an_identity_without_its_id_is_named(tmp_path):
    folder = _claim(tmp_path)
    (folder.path / "sweep.json").write_text('{"layout": 2}')
    with pytest.raises(SweepError, match=r"sweep\.json is damaged: it does not say the sweep's id"):
        _ = folder.owner


@pytest.mark.faults(42)
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"elapsed_s": "x"}', '{"elapsed_s": null}', DEEP])
def test_a_torn_clock_stops_no_sweep(tmp_path, text):
    folder = _claim(tmp_path)
    (folder.path / "clock.json").write_text(text)
    with pytest.warns(ClockWarning, match=r"clock\.json is damaged"):
        clock = folder.clock()
    assert clock.save() >= 0
    assert folder.elapsed_s() >= 0


@pytest.mark.faults(35, 42)
def test_a_study_that_lost_its_trials_is_refused(tmp_path):
    folder = _claim(tmp_path)
    folder.check_study(0)
    for number in (0, 1, 2):
        folder.trial(number).mkdir(parents=True)
    folder.check_study(3)
    for num_trials in (0, 2):
        with pytest.raises(SweepError, match=rf"has {num_trials} trials, but .*trials holds those up to"):
            folder.check_study(num_trials)
