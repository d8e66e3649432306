"""Masks recomputed from checkpoints are those that the run drew."""

import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from score_files import write_scores

import mhimdist as mh
from data_prep.shard import shard
from mhimdist.config.execution import Saving
from mhimdist.errors import CheckpointError, DataError
from mhimdist.heatmaps import mask_picture
from mhimdist.heatmaps.masks import Masks
from mhimdist.heatmaps.places import Places
from mhimdist.heatmaps.slides import Region
from mhimdist.method import mhim

EPOCHS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with all its checkpoints, its bags, and the first mask of every epoch as training drew it."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    (folder / "features").mkdir()
    lines = ["slide,label,case"]
    for index in range(12):
        np.save(
            folder / "features" / f"s{index}.npy", rng.normal(size=(40, 8)).astype(np.float32) + index % 2
        )
        lines.append(f"s{index},{('normal', 'tumor')[index % 2]},c{index}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    shard(folder / "features", folder / "labels.csv", folder / "data")
    bags = mh.open_bags(folder / "data")
    split = mh.holdout(bags.keys, bags.cases, bags.labels_N, test_share=0.3, validation_share=0.3, seed=0)
    config = mh.preset("c16", "abmil").override(
        {
            **{"model.hidden_dim": 8, "epochs": EPOCHS, "masking.high": 0.1, "masking.random": 0.4},
            **{"teacher.kind": "momentum", "teacher.momentum.start": 0.5},
        }
    )
    drawn, real = [], mhim.mask_bags

    def noted(bags, scores_TH, numbers, *, capacity):
        kept, selection = real(bags, scores_TH, numbers, capacity=capacity)
        hidden_N = np.ones(len(bags.features_TD), bool)
        hidden_N[selection.kept_K.numpy()] = False
        drawn.append((bags.keys, hidden_N))
        return kept, selection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mhim, "mask_bags", noted)
        trainer = mh.open_trainer(config, bags, split, folder / "run", folder / "cache", saving=Saving(9))
        num_epochs = sum(1 for _ in trainer.epochs())
    steps = len(drawn) // num_epochs
    assert num_epochs == EPOCHS
    firsts = {epoch + 1: drawn[epoch * steps] for epoch in range(EPOCHS)}
    return folder, bags, firsts


def test_the_mask_of_the_first_bag_of_an_epoch_is_the_one_that_training_drew(trained):
    folder, bags, firsts = trained
    compared = 0
    for epoch in (2, 3):
        (key, *_), hidden_N = firsts[epoch]
        by_epoch = {mask.epoch: mask.hidden_N for mask in Masks(folder / "run", bags).of(key, 40)}
        assert set(by_epoch) == {2, 3}
        assert (by_epoch[epoch] == hidden_N[:40]).all()
        compared += hidden_N[:40].sum()
    assert compared > 20


def test_the_salient_ones_are_the_share_that_the_high_mask_takes(trained):
    """The pool is the top .1 / .5 of 40 patches; half of it is hidden, and half of the rest at random."""
    folder, bags, _ = trained
    for mask in Masks(folder / "run", bags).of("s1", 40):
        assert mask.salient_N.sum() == 4
        assert not (mask.salient_N & ~mask.hidden_N).any()
        assert 16 <= mask.hidden_N.sum() <= 20


def test_the_command_draws_them(trained, tmp_path):
    folder, _, _ = trained
    coords_N2 = np.stack([np.arange(40) % 8, np.arange(40) // 8], axis=1) * 64
    write_scores(tmp_path, "s1", coords_N2=coords_N2, attention_N=np.full(40, 1 / 40), patch_size=64)
    job = mh.HeatMaps(predictions=[tmp_path], run=folder / "run", data=folder / "data")
    out = mh.heat_maps(job)
    assert (out / "s1" / "masks.png").stat().st_size > 10_000
    write_scores(tmp_path, "s2", coords_N2=coords_N2[:9], attention_N=np.full(9, 1 / 9), patch_size=64)
    write_scores(tmp_path, "other", coords_N2=coords_N2, attention_N=np.full(40, 1 / 40), patch_size=64)
    with pytest.raises(DataError) as raised:
        mh.heat_maps(job)
    assert "2 of 3 slides have no map" in str(raised.value)
    assert f"'s2' has 40 patches in {folder}/data, and 9 in the prediction" in str(raised.value)
    assert f"{folder}/data has no bag 'other'" in str(raised.value)


@pytest.mark.parametrize("edge", [64, 128])
def test_each_patch_has_the_colour_of_its_kind_even_if_patches_overlap(tmp_path, edge):
    kinds = (mask_picture.SALIENT, mask_picture.OTHER, mask_picture.SEEN)
    corners_N2 = np.array([[0.0, 0], [64, 0], [128, 0]])
    mask = mask_picture.EpochMask(2, np.array([True, True, False]), np.array([True, False, False]))
    view = Region(0, 0, 192, 640)  # taller than a panel may be
    places = Places(corners_N2, edge, 64, "px", None)
    figure = mask_picture.draw([mask], "s", places, view, width_px=1500, dpi=100)
    figure.savefig(tmp_path / "a.png", dpi=100)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")) / 255
    (axes,) = figure.axes
    for (x, _), colour in zip(corners_N2, kinds, strict=True):
        column, line = axes.transData.transform((x + 32, 32))
        assert pixels[len(pixels) - 1 - int(line), int(column)] == pytest.approx(to_rgb(colour), abs=0.01)
    assert axes.get_title(loc="left") == "start of epoch 2: 66.7% hidden, 1 as salient"
    bounds = axes.get_window_extent()
    assert bounds.height / bounds.width == pytest.approx(640 / 192, rel=0.01)


def test_runs_without_masks_or_checkpoints_are_refused(trained, tmp_path):
    folder, bags, _ = trained
    with pytest.raises(CheckpointError, match="nowhere is not the folder of a run"):
        Masks(tmp_path / "nowhere", bags)
    text = (folder / "run" / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="has kept no checkpoint at the end of an epoch: only runs in"):
        Masks(tmp_path, bags)
    tree = json.loads(text)
    tree["masking"] |= {ratio: {"start": 0.0} for ratio in ("high", "low", "random")}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="plain does not mask: its ratios are 0"):
        Masks(tmp_path / "plain", bags)
