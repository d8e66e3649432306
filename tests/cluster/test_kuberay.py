"""cluster/kuberay.yaml: KubeRay and Kubernetes accept it, and it is closed, private and elastic."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from mhimdist.cluster import connect
from mhimdist.cluster.nodes import addable_nodes
from mhimdist.errors import ClusterError

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())
KUBERNETES = "1.33"


@pytest.fixture
def documents():
    return list(yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text()))


@pytest.fixture
def job(documents):
    (found,) = [document for document in documents if document["kind"] == "RayJob"]
    return copy.deepcopy(found)  # YAML's anchors would be changed together


@pytest.fixture
def cluster(job):
    return job["spec"]["rayClusterSpec"]


@pytest.fixture
def pods(job, cluster):
    (worker,) = cluster["workerGroupSpecs"]
    return {
        "submitter": job["spec"]["submitterPodTemplate"]["spec"],
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": worker["template"]["spec"],
    }


def test_kuberay_accepts_it(job):
    jsonschema.validate(job, SCHEMA)


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        (["spec"], "entrypoints", "python"),
        (["spec", "rayClusterSpec"], "headGroupSpecs", {}),
        (["spec", "rayClusterSpec", "authOptions"], "mode", "tokens"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0], "minReplicas", "0"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0], "rayStartParams", {"memory": 1}),
    ],
)
def test_a_mistake_would_be_noticed(job, where, field, value):
    part = job
    for key in where:
        part = part[key]
    part[field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_kubernetes_accepts_the_pods_and_the_volume(documents, pods):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    (volume,) = [document for document in documents if document["kind"] != "RayJob"]
    kubernetes.validate(volume, KUBERNETES, strict=True)
    for name, spec in pods.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        kubernetes.validate(pod, KUBERNETES, strict=True)
    pods["head"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate({**pod, "spec": pods["head"]}, KUBERNETES, strict=True)


def test_nobody_gets_in_without_the_secret_and_no_secret_is_in_the_file(cluster):
    assert cluster["authOptions"] == {"mode": "token", "secretName": "mhimdist-token"}
    text = (ROOT / "cluster" / "kuberay.yaml").read_text()
    assert 'create secret generic mhimdist-token --from-literal=auth_token="$(openssl rand' in text
    assert "kind: Secret" not in text


def test_no_container_has_rights_that_it_does_not_need(pods):
    for spec in pods.values():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    user = re.search(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert user == "1000"


def test_gpu_workers_come_from_none(cluster, pods):
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert group["maxReplicas"] >= 1
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert pods["worker"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in pods["head"]["containers"][0]["resources"]["limits"]


def test_home_is_on_the_volume_that_all_pods_mount(documents, pods):
    (volume,) = [document for document in documents if document["kind"] == "PersistentVolumeClaim"]
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in ("head", "worker"):
        (container,) = pods[name]["containers"]
        assert {"name": "MHIMDIST_HOME", "value": "/shared/mhimdist"} in container["env"]
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        claim = {"name": "shared", "persistentVolumeClaim": {"claimName": volume["metadata"]["name"]}}
        assert claim in pods[name]["volumes"]


def test_ray_is_the_one_of_the_image(cluster):
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_the_plan_knows_the_nodes_that_can_be_added(cluster, pods, monkeypatch):
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = pods["worker"]["containers"]
    told = {each["name"]: each["value"] for each in pods["head"]["containers"][0]["env"]}
    monkeypatch.setenv(connect.NODE_TYPES_VARIABLE, told[connect.NODE_TYPES_VARIABLE])
    config = connect._autoscaler_config()()
    nodes, without_memory = addable_nodes(config, [])
    assert without_memory == []
    assert len(nodes) == group["maxReplicas"]
    (node,) = set(nodes)
    requests = worker["resources"]["requests"]
    assert (str(int(node.cpus)), str(int(node.gpus))) == (requests["cpu"], requests["nvidia.com/gpu"])
    assert str(node.memory_bytes) == group["rayStartParams"]["memory"]
    assert node.memory_bytes == int(0.7 * int(requests["memory"].removesuffix("Gi")) * 2**30)
    assert list(config["available_node_types"]) == [group["groupName"]]


@pytest.mark.parametrize("text", ["{", "8", "max_workers: 2\navailable_node_types: [gpu]"])
def test_node_types_that_cannot_be_read_are_refused(text, monkeypatch):
    monkeypatch.setenv(connect.NODE_TYPES_VARIABLE, text)
    with pytest.raises(ClusterError, match="expected YAML with max_workers and available_node_types"):
        connect._autoscaler_config()
