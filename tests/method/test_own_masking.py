"""The ranking of docs/own_masking.md, in one file of its own, decides what masks hide, everywhere."""

import re
import runpy
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from job_scripts import ROOT
from memory_bags import MemoryBags, gaussian_bags
from torch.nn import functional

import mhimdist as mh
from data_prep import digits
from mhimdist.config.method import Masking
from mhimdist.config.train import ConfigWarning, load_config
from mhimdist.cross_validation import compare
from mhimdist.data.bags import PackedBags
from mhimdist.errors import ConfigError
from mhimdist.method.masking import ranked
from mhimdist.training.fold import run_fold
from mhimdist.training.folds import Fold
from mhimdist.training.requirements import check_run

PAGE = (ROOT / "docs" / "own_masking.md").read_text()


@pytest.fixture(autouse=True)
def _module_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) < 80
    (tmp_path / "look_alikes.py").write_text(code)
    (tmp_path / "wrong.py").write_text(
        "def short(scores_TH, bags):\n    return scores_TH[1:]\n\n\n"
        "def words(scores_TH, bags):\n    return 'high'\n\n\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def masking(**changes: object) -> Masking:
    return Masking.model_validate({"high": 0.25, "ranking": "look_alikes:rank"} | changes)


def packed(num_heads: int = 1) -> tuple[PackedBags, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    bags = [torch.randn(size, 5, generator=draw) for size in (9, 1, 30)]
    return PackedBags.from_list(bags, keys=["a", "b", "c"]), torch.randn(40, num_heads, generator=draw)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_the_ranking_of_the_page_is_what_it_says(num_heads: int) -> None:
    bags, scores_TH = packed(num_heads)
    found_T1 = ranked(masking(), scores_TH, bags)
    for start, end in pairwise(bags.offsets_B1.tolist()):
        features_ND, weights_N = bags.features_TD[start:end], scores_TH[start:end].mean(1).softmax(0)
        mean_D = weights_N @ features_ND
        expected_N = functional.cosine_similarity(features_ND, mean_D[None], dim=1)
        assert torch.allclose(found_T1[start:end, 0], expected_N, atol=1e-6)


def test_padding_behind_the_last_bag_changes_no_bag() -> None:
    bags, scores_TH = packed()
    expected_T1 = ranked(masking(), scores_TH, bags)
    features_TD = torch.cat([bags.features_TD, torch.full((7, 5), 1e3)])
    padded = PackedBags(features_TD, bags.offsets_B1, bags.labels_B, bags.ids_B, bags.keys)
    found_T1 = ranked(masking(), torch.cat([scores_TH, torch.full((7, 1), 1e3)]), padded)
    assert torch.equal(found_T1[:40], expected_T1)


def test_without_a_ranking_the_scores_are_the_same_tensor() -> None:
    bags, scores_TH = packed()
    assert ranked(masking(ranking=None), scores_TH, bags) is scores_TH
    assert ranked(masking(), None, bags) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "missing:rank",
            "can be imported here, got 'missing:rank': No module named 'missing'; put the module",
        ),
        ("look_alikes:sort", "can be imported here, got 'look_alikes:sort'"),
        ("wrong:number", "expected a function, got 3"),
        ("wrong:short", r"a number for each of 40 instances, got \(39, 1\)"),
        ("wrong:words", "a number for each of 40 instances, got str"),
    ],
)
def test_a_wrong_ranking_is_refused_by_name(name: str, said: str) -> None:
    bags, scores_TH = packed()
    with pytest.raises(ConfigError, match=rf"masking\.ranking: .*{said}"):
        ranked(masking(ranking=name), scores_TH, bags)


def test_a_name_of_another_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected module:function, such as look_alikes:rank, got 'rank'"):
        load_config({"masking": {"high": 0.1, "ranking": "rank"}})


def config(**masks: object) -> mh.TrainConfig:
    tree = {
        "model": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4},
        "masking": {"high": 0.3, **masks},
        "teacher": {"kind": "momentum"},
        "epochs": 2,
        "device": "cpu",
    }
    return load_config(tree)


def test_settings_without_a_ranking_have_the_digest_of_earlier_releases() -> None:
    recipe = config().recipe()
    assert "ranking" not in recipe["masking"]
    assert config(ranking="look_alikes:rank").digest() != config().digest()
    again = mh.TrainConfig.model_validate(config(ranking="look_alikes:rank").recipe())
    assert again.masking.ranking == "look_alikes:rank"


def split_of(bags: MemoryBags) -> mh.Split:
    return mh.holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.3, validation_share=0.3, seed=0)


def train(bags: MemoryBags, settings: mh.TrainConfig, folder: Path) -> list[float]:
    fold = Fold("fold 1", settings, split_of(bags), 1, folder / "fold-1-seed-1", is_tested=True)
    run_fold(fold, bags, folder / "cache", 1)
    return [record.loss for record in fold.records()]


def test_the_ranking_trains_and_is_checked_before(tmp_path: Path) -> None:
    bags = gaussian_bags(40)
    own = train(bags, config(ranking="look_alikes:rank"), tmp_path / "own")
    assert own == train(bags, config(ranking="look_alikes:rank"), tmp_path / "again")
    assert own != train(bags, config(), tmp_path / "scores")
    with pytest.raises(ConfigError, match=r"masking\.ranking: .*'missing:rank'"):
        check_run(config(ranking="missing:rank"), bags, split_of(bags))


def test_the_command_of_the_page_has_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is run up to the call that would start Ray."""
    (command,) = re.findall(r"^python (jobs/.*)$", PAGE, re.MULTILINE)
    started = []
    monkeypatch.setattr(compare, "run_cross_validation", lambda job, data: started.append(job))
    monkeypatch.setattr(digits, "ensure", lambda data, home: data)
    monkeypatch.setattr("sys.argv", shlex.split(command))
    runpy.run_path(str(ROOT / "jobs" / "train_c16.py"), run_name="__main__")
    (job,) = started
    assert job.train.masking.ranking == "look_alikes:rank"
    assert job.train.masking.high.start == 0.1


def test_a_ranking_without_effect_is_named() -> None:
    with pytest.warns(ConfigWarning, match=r"masking\.ranking: masking\.high and masking\.low are 0"):
        config(high=0.0, random=0.3, ranking="look_alikes:rank")
