"""The module of an export computes what our networks compute, with PyTorch and safetensors alone."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import exported
import pytest
import torch
from exported import SETTINGS, SIZES

from mhimdist.export import load_model
from mhimdist.export.load_model import ExportError, load

APPLY = """
import json
sys.path.insert(0, ".")
import torch
from load_model import load
made = {}
torch.set_num_threads(1)
for name, bags in torch.load("bags.pt").items():
    model = load(f"{name}.safetensors")
    made[name] = [model(features, f"slide-{len(features)}")[0].tolist() for features in bags]
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every model exported, its module, and the bags."""
    folder = tmp_path_factory.mktemp("exports")
    for name in SETTINGS:
        exported.write(folder, name)
    shutil.copy(load_model.__file__, folder)
    torch.save(
        {name: [exported.features_of(size) for size in SIZES] for name in SETTINGS}, folder / "bags.pt"
    )
    return folder


def _check(printed):
    made = json.loads(printed)
    assert made.keys() == SETTINGS.keys()
    for name, found in made.items():
        network = exported.network_of(name)
        for size, probabilities in zip(SIZES, found, strict=True):
            wanted = exported.expected(network, exported.features_of(size), f"slide-{size}")
            torch.testing.assert_close(torch.tensor(probabilities), wanted, rtol=0, atol=1e-5)


def test_torch_and_safetensors_alone_give_the_same_probabilities(folder):
    # torch itself wants typing_extensions and the next ones; numpy, pydantic and mhimdist are refused.
    own = {"torch", "torchgen", "typing_extensions", "sympy", "mpmath", "functorch", "safetensors"}
    _check(exported.run_with_only(own | {"load_model"}, APPLY, folder))


def test_the_blocked_process_really_lacks_what_is_blocked(tmp_path):
    code = "try:\n    import numpy\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert exported.run_with_only({"torch"}, code, tmp_path) == "numpy is blocked\n"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_fresh_environment_with_torch_and_safetensors_gives_the_same_probabilities(folder, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    versions = [f"torch=={torch.__version__}", "safetensors"]
    subprocess.run([python, "-m", "pip", "install", "-q", *versions], check=True)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "numpy" not in listed
    assert "pydantic" not in listed
    # Without numpy torch warns of that once when it is imported.
    done = subprocess.run([python, "-c", f"import sys\n{APPLY}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _check(done.stdout)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [1, 2, 3, 9, 36, 37, 48, 49, 50, 150])
def test_three_classes_and_every_layout_of_a_bag_agree(name, size):
    network = exported.network_of(name, num_classes=3)
    plain = load_model.NETWORKS[SETTINGS[name].name](SETTINGS[name].model_dump(), exported.NUM_FEATURES, 3)
    plain.load_state_dict(network.state_dict())
    model = load_model.Model([plain.eval()], [exported.header_of(name, 3)])
    features_ND = exported.features_of(size)
    probabilities_C, attention_NH = model(features_ND, "slide 1/é")
    wanted = exported.expected(network, features_ND, "slide 1/é")
    torch.testing.assert_close(probabilities_C, wanted, rtol=0, atol=1e-5)
    if "pooling" in name:
        assert attention_NH is None
    else:
        assert attention_NH.shape[0] == size
    if not name.startswith(("transmil", "max", "mean")):
        torch.testing.assert_close(attention_NH.sum(0), torch.ones(attention_NH.shape[1]))


@pytest.mark.parametrize("name", ["abmil", "transmil", "transmil-1"])
def test_attention_is_the_networks_own(name):
    network, features_ND = exported.network_of(name), exported.features_of(70)
    plain = load_model.NETWORKS[SETTINGS[name].name](SETTINGS[name].model_dump(), exported.NUM_FEATURES, 2)
    plain.load_state_dict(network.state_dict())
    with torch.inference_mode():
        scores_NH = network(exported.PackedBags.from_list([features_ND])).scores_TH
        wanted = scores_NH.softmax(0) if name == "abmil" else scores_NH
        torch.testing.assert_close(plain(features_ND)[1], wanted, rtol=1e-3, atol=1e-6)


def test_the_cut_of_dtfd_follows_the_name(folder):
    model, features_ND = load(folder / "dtfd-MaxMinS.safetensors"), exported.features_of(50)
    one, again, other = (model(features_ND, name)[0] for name in ("a", "a", "b"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_folder_of_several_files_is_an_ensemble(tmp_path):
    one = exported.write(tmp_path, "abmil")
    two = exported.write(tmp_path, "clam_sb")
    features_ND = exported.features_of(20)
    each = [load(path)(features_ND) for path in (one, two)]
    probabilities_C, attention_N1 = load(tmp_path)(features_ND)
    torch.testing.assert_close(probabilities_C, (each[0][0] + each[1][0]) / 2)
    torch.testing.assert_close(attention_N1, (each[0][1] + each[1][1]) / 2)
    exported.write(tmp_path, "dsmil", encoder="uni")
    with pytest.raises(ExportError, match=r"dsmil.safetensors: encoder: expected resnet50, .*, got uni"):
        load(tmp_path)


def test_features_of_another_shape_are_refused(folder):
    model = load(folder / "abmil.safetensors")
    for shape in ((4, 25), (0, 24), (24,), (1, 4, 24)):
        with pytest.raises(ExportError, match=rf"expected features of N x 24 .*, got \({shape[0]},"):
            model(torch.zeros(shape))


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"expected a file or files that end in \.safetensors"):
        load(tmp_path)
    with pytest.raises(ExportError, match="expected an export of mhimdist, cannot read one"):
        load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("some text")
    with pytest.raises(ExportError, match="expected an export of mhimdist, cannot read one"):
        load(tmp_path / "text.safetensors")
    path = exported.write(tmp_path, "abmil", format_version=2)
    with pytest.raises(ExportError, match=r"expected format version 1, got 2: use the load_model\.py"):
        load(path)


def test_the_module_is_one_file_that_imports_nothing_of_ours():
    text = Path(load_model.__file__).read_text()
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    packages = {line.split()[1].split(".")[0] for line in imports}
    assert packages - sys.stdlib_module_names == {"torch", "safetensors"}
