import json
from types import SimpleNamespace

import pytest
from memory_bags import MemoryBags

from mhimdist.cluster.nodes import Share
from mhimdist.config.presets import preset
from mhimdist.config.train import TrainConfig
from mhimdist.cross_validation.options import Candidate
from mhimdist.errors import MhimdistError
from mhimdist.report.summary import Trial
from mhimdist.search.options import Sweep
from mhimdist.sweep import finals
from mhimdist.sweep.finals import _num_tested, _text_of, _why_none_completed, final_seeds
from mhimdist.sweep.folder import SweepFolder

BASE = preset("c16", "abmil")


def test_final_runs_have_seeds_that_the_search_did_not_use():
    base = BASE.override({"seed": 5})
    assert final_seeds(Sweep(train=base, final_seeds=3)) == [6, 7, 8]
    assert final_seeds(Sweep(train=base, final_seeds=3, seeds=(7, 5))) == [6, 8, 9]
    assert final_seeds(Sweep(train=base, final_seeds=2, seeds=(1, 2))) == [5, 6]


def test_the_base_is_named_after_the_nearest_preset():
    assert _text_of(BASE.override({"seed": 9, "device": "cpu"})) == "the paper's preset of abmil for c16"
    changed = BASE.override({"model.hidden_dim": 128, "optimizer.learning_rate": 5e-4})
    assert _text_of(changed) == (
        "the paper's preset of abmil for c16 with model.hidden_dim 128, optimizer.learning_rate 0.0005"
    )


def test_tested_configurations_are_counted_once_whatever_their_seeds(tmp_path):
    folder = SweepFolder(Sweep(home=tmp_path, name="test", train=BASE))
    assert _num_tested(folder) == 0
    other = BASE.override({"loss.alpha": 0.2})
    for number, config in enumerate([BASE, BASE.override({"seed": 7}), other, BASE.first_stage()]):
        fold = folder.finals / str(number)
        fold.mkdir(parents=True)
        (fold / "config.json").write_text(config.model_dump_json())
        assert TrainConfig.model_validate_json((fold / "config.json").read_text()) == config
        if config is not other:  # that one was cut off
            (fold / "result.json").write_text(json.dumps({}))
    assert _num_tested(folder) == 2
    (folder.finals / "3" / "config.json").unlink()
    (folder.finals / "1" / "config.json").write_text("{}}")
    assert _num_tested(folder) == 3  # the one of 0, and two of which only the results are left


def test_a_sweep_without_a_complete_trial_says_how_its_trials_ended_and_why():
    sweep = Sweep(name="it", train=BASE)
    trials = [
        Trial(0, "pruned", 0.5, {}, reason="0.5 after 2 epochs"),
        Trial(1, "failed", None, {}, reason=" \n"),
    ]
    trials += [Trial(n, "failed", None, {}, reason=f"Traceback\n  ...\nError: {n % 7}") for n in range(2, 30)]
    text = _why_none_completed(sweep, trials)
    assert text.startswith(
        "no trial of it was completed (30 trials: 1 pruned, 29 failed), so there is nothing to"
    )
    assert (
        "trial 0: 0.5 after 2 epochs; trial 1: no reason was recorded; trial 2: Error: 2; trial 3: E" in text
    )
    assert text.endswith("; and 4 other reasons")
    assert "(0 trials: none)" in _why_none_completed(sweep, [])


def test_a_final_run_that_outgrew_its_share_runs_again_with_all_that_a_node_has(
    bags: MemoryBags, tmp_path, monkeypatch, capsys
):
    """With the same share it would meet the same cap, however alone it is."""
    shares, planned, largest = [], Share(1, 0.25, 100), Share(1, 1, 400)

    def run_folds(sweep, folds, data, stopping, share):
        shares.append(share)
        return dict.fromkeys(folds, "OutOfMemoryError: CUDA out of memory")

    monkeypatch.setattr(finals, "run_folds", run_folds)
    sweep = Sweep(home=tmp_path, name="test", train=BASE, final_seeds=1)
    task = SimpleNamespace(splits=[bags.holdout()], data=tmp_path)
    planning = SimpleNamespace(share=planned, largest_share=lambda: largest)
    with pytest.raises(MhimdistError, match="CUDA out of memory"):
        finals._train_finals(
            sweep, [Candidate("trial 0", BASE.first_stage())], task, SweepFolder(sweep), bags, planning, None
        )
    assert shares == [planned, largest]
    assert "ran out of memory: it runs again alone, with all that a node has" in capsys.readouterr().out
