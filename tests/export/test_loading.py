import exported
import golden_values
import pytest
import torch
from safetensors.torch import save_file

from mhimdist.errors import CheckpointError
from mhimdist.export.loading import load_student


@pytest.mark.parametrize("name", exported.SETTINGS)
def test_an_exported_file_and_its_folder_are_loaded(name, tmp_path):
    path, features_ND = exported.write(tmp_path, name), exported.features_of(20)
    wanted = exported.expected(exported.network_of(name), features_ND, "a")
    for place in (path, tmp_path, str(path)):
        assert torch.equal(exported.expected(load_student(place), features_ND, "a"), wanted)


@pytest.mark.numeric
@pytest.mark.parametrize("baseline", ["attn", "attn_gated", "selfattn", "dsmil"])
@pytest.mark.parametrize("wrapping", ["released", "weights alone", "safetensors"])
def test_the_authors_checkpoint_gives_the_golden_logits(baseline, wrapping, tmp_path):
    student, teacher = (golden_values.official_weights(baseline, seed) for seed in (1000, 2000))
    path = tmp_path / ("best.safetensors" if wrapping == "safetensors" else "fold_0_model_best_auc.pt")
    if wrapping == "safetensors":
        save_file(student, path)
    else:
        torch.save({"model": student, "teacher": teacher} if wrapping == "released" else student, path)
    network = load_student(path)
    assert not network.training
    with torch.inference_mode():
        logits = network(golden_values.bag(40, seed=40)).logits_BC
    name = "logits_bag" if baseline == "dsmil" else "logits"
    golden = torch.from_numpy(golden_values.ARRAYS[f"{baseline}/n40/{name}"])
    torch.testing.assert_close(logits, golden, rtol=1e-4, atol=1e-5)


def test_wrong_paths_say_what_to_give(tmp_path):
    with pytest.raises(
        CheckpointError, match="does not exist: give the folder of a finished fold, or a file"
    ):
        load_student(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no best_student/ and no export: give the folder"):
        load_student(tmp_path)
    (tmp_path / "table.csv").write_text("slide,label\n")
    with pytest.raises(CheckpointError, match=r"table\.csv: expected a checkpoint.*, got a damaged file"):
        load_student(tmp_path / "table.csv")
    torch.save({"fc.weight": torch.zeros(2, 3)}, tmp_path / "other.pt")
    with pytest.raises(
        CheckpointError, match=r"other\.pt: expected the weights of .*, got other names \(fc\.w"
    ):
        load_student(tmp_path / "other.pt")


def test_a_checkpoint_with_shapes_of_no_model_is_refused(tmp_path):
    weights = golden_values.official_weights("attn", 1000)
    weights["patch_to_emb.0.weight"] = torch.tensor(1.0)
    torch.save(weights, tmp_path / "flat.pt")
    with pytest.raises(CheckpointError, match=r"flat\.pt: the weights of abmil without .* have shapes of no"):
        load_student(tmp_path / "flat.pt")
    weights = golden_values.official_weights("attn", 1000)
    weights["predictor.weight"] = torch.zeros(2, 9)
    torch.save(weights, tmp_path / "narrow.pt")
    with pytest.raises(CheckpointError, match=r"narrow\.pt: the weights do not fit abmil .*head\.weight"):
        load_student(tmp_path / "narrow.pt")


def test_a_damaged_export_is_refused_by_its_name(tmp_path):
    path = exported.write(tmp_path, "abmil")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    for place in (path, tmp_path):
        with pytest.raises(CheckpointError, match=r"abmil\.safetensors was changed or damaged"):
            load_student(place)
