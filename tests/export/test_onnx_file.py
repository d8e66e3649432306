"""The ONNX files give our probabilities with ONNX Runtime alone, for bags of any size."""

import importlib.util
import json
import shutil

import exported
import numpy as np
import onnxruntime
import pytest
import torch
from exported import SETTINGS

from mhimdist.errors import ConfigError, ExportMismatchError
from mhimdist.export import load_model, onnx_file

MARKS = {"transmil": pytest.mark.long, "transmil-1": pytest.mark.slow}
SIZES = (1, 2, 3, 36, 37, 50, 64, 3000)
APPLY = """
import json
import numpy as np
import onnxruntime
made = {}
bags = np.load("bags.npz")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
for name in bags.files:
    feed = {"features": bags[name]}
    if "key" in {each.name for each in session.get_inputs()}:
        feed["key"] = np.load("keys.npz")[name]
    made[name] = session.run(["probabilities"], feed)[0].tolist()
try:
    import torch
except ModuleNotFoundError:
    print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that exports a model once."""
    folder, done = tmp_path_factory.mktemp("onnx"), {}

    def make(name):
        if name not in done:
            done[name] = folder / f"{name}.onnx"
            header = exported.header_of(name, threshold=0.5)
            onnx_file.write(done[name], exported.network_of(name).state_dict(), header)
        return done[name]

    return make


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=MARKS.get(name, ())) for name in SETTINGS],
)
def test_every_model_exports_with_bags_of_any_size(name, made):
    session = onnxruntime.InferenceSession(made(name), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["N", exported.NUM_FEATURES]
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["mhimdist"]) == exported.header_of(name, threshold=0.5)
    assert said["opset"] == str(onnx_file.OPSET)
    network = exported.network_of(name)
    plain = load_model.NETWORKS[SETTINGS[name].name](SETTINGS[name].model_dump(), exported.NUM_FEATURES, 2)
    plain.load_state_dict(network.state_dict())
    for size in SIZES:
        features_ND, slide = exported.features_of(size), f"slide-{size}"
        key = {"key": load_model.cut_key(slide).numpy()} if "dtfd" in name else {}
        found = session.run(None, {"features": features_ND.numpy(), **key})
        wanted = exported.expected(network, features_ND, slide)
        np.testing.assert_allclose(found[0], wanted.numpy(), rtol=0, atol=1e-5)
        attention = load_model.Model([plain], [exported.header_of(name)])(features_ND, slide)[1]
        assert len(found) == (1 if attention is None else 2)
        if attention is not None:
            np.testing.assert_allclose(found[1], attention.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["transmil", "dtfd-AFS"])
def test_onnx_runtime_alone_gives_the_same_probabilities(name, made, tmp_path):
    shutil.copy(made(name), tmp_path / "model.onnx")
    bags = {f"slide-{size}": exported.features_of(size) for size in (1, 2, 50, 3000)}
    np.savez(tmp_path / "bags.npz", **{key: bag.numpy() for key, bag in bags.items()})
    np.savez(tmp_path / "keys.npz", **{key: load_model.cut_key(key).numpy() for key in bags})
    allowed = {"onnxruntime", "numpy", "google", "flatbuffers", "packaging"}
    printed = json.loads(exported.run_with_only(allowed, APPLY, tmp_path))
    network = exported.network_of(name)
    assert printed.keys() == bags.keys()
    for key, bag in bags.items():
        wanted = exported.expected(network, bag, key).numpy()
        np.testing.assert_allclose(printed[key], wanted, rtol=0, atol=1e-5)


def test_a_model_that_differs_is_not_written(tmp_path, monkeypatch):
    exact = onnx_file._exported

    def wrong(network, header):
        network.head.bias[0] += 0.01
        content = exact(network, header)
        network.head.bias[0] -= 0.01
        return content

    monkeypatch.setattr(onnx_file, "_exported", wrong)
    path = tmp_path / "abmil.onnx"
    with pytest.raises(
        ExportMismatchError, match=r"abmil\.onnx: for a bag of 1 instances, .*; the file is not"
    ):
        onnx_file.write(path, exported.network_of("abmil").state_dict(), exported.header_of("abmil"))
    assert not path.exists()


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(ConfigError, match=r"onnxscript is not installed: pip install 'mhimdist\[onnx\]'"):
        onnx_file.write(tmp_path / "a.onnx", {}, exported.header_of("abmil"))


@pytest.mark.slow
def test_bags_of_the_real_width_export_too(tmp_path):
    settings = exported.model_settings.TransMIL(hidden_dim=64, num_heads=8, num_landmarks=256)
    network = exported.build(settings, num_features=1024, num_classes=2, seed=0)
    header = exported.header_of("transmil") | {
        "model": settings.model_dump(mode="json"),
        "num_features": 1024,
    }
    onnx_file.write(tmp_path / "wide.onnx", network.state_dict(), header)
    features_ND = torch.randn(700, 1024, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(tmp_path / "wide.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["probabilities"], {"features": features_ND.numpy()})[0]
    wanted = exported.expected(network.eval(), features_ND, "any").numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
