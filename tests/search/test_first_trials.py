import json

import pytest

from mhimdist.config.presets import preset
from mhimdist.data.splits import Split
from mhimdist.errors import SweepError
from mhimdist.search import proposals, storage
from mhimdist.search.first_trials import best_of_earlier
from mhimdist.search.options import Sweep
from mhimdist.search.space import Space
from mhimdist.search.study import SweepStudy

BASE = preset("c16", "abmil")
CASE_OF = {f"bag-{i}": f"case-{i // 2}" for i in range(12)}
SPLIT = Split(("bag-0", "bag-1", "bag-2", "bag-3"), ("bag-4", "bag-5"), ("bag-8", "bag-9"))


def space(s: Space) -> None:
    s.uniform("loss.alpha", 0.0, 1.0)


@pytest.fixture
def earlier(tmp_path):
    """The folder of a sweep of five trials, and their parameters."""
    folder = tmp_path / "runs" / "earlier"
    folder.mkdir(parents=True)
    url = storage.sqlite_url(folder / "study.db")
    opened = SweepStudy(Sweep(name="earlier", train=BASE), space, proposals.examine(space, BASE), url)
    params = []
    for value in (0.1, 0.9, 0.5, 0.7, 0.3):
        opened.complete(opened.propose().number, value, None)
        params.append(opened.trials[-1].params)
    (folder / "sweep.json").write_text(json.dumps({"url": url, "name": "earlier"}))
    SPLIT.save(folder / "split-1.json")
    return folder, params


def _best_of_earlier(tmp_path, split=SPLIT, warm_from="runs/earlier"):
    return best_of_earlier(Sweep(home=tmp_path, warm_from=warm_from), [split], CASE_OF)


def test_an_earlier_sweep_lends_its_best_wherever_the_job_runs(tmp_path, earlier, monkeypatch):
    folder, params = earlier
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    best = [params[1], params[3], params[2]]
    assert _best_of_earlier(tmp_path) == best
    assert _best_of_earlier(elsewhere, warm_from=str(folder)) == best
    folder.rename(tmp_path / "moved")
    assert _best_of_earlier(tmp_path, warm_from="moved") == best


def test_an_earlier_sweep_that_saw_test_cases_is_refused(tmp_path, earlier):
    # Not the bag itself, but another bag of its case.
    for key, case in (("bag-1", "case-0"), ("bag-4", "case-2")):
        split = Split(("bag-10",), ("bag-11",), (key, "bag-8"))
        with pytest.raises(SweepError, match=f"on 1 of the 2 test cases of this sweep, such as '{case}'"):
            _best_of_earlier(tmp_path, split)
    assert len(_best_of_earlier(tmp_path, Split(("bag-0",), ("bag-4",), ("bag-6", "bag-10")))) == 3


def test_a_folder_that_says_too_little_is_refused(tmp_path, earlier):
    with pytest.raises(SweepError, match=r"warm_from other \(/.*other\) is not a sweep's folder"):
        _best_of_earlier(tmp_path, warm_from="other")
    folder, _ = earlier
    (folder / "split-1.json").unlink()
    with pytest.raises(SweepError, match=r"has no split-1\.json, so nothing says which cases"):
        _best_of_earlier(tmp_path)
