"""Ray without its token is refused however it came about, and what a job starts by hand is shut."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mhimdist.cluster import authentication

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def _run(program, home, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**env, "PYTHONPATH": str(ROOT), "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


MODES_THAT_RAY_TAKES_FOR_NONE = """
import os
from mhimdist.cluster.connect import refuse_open_cluster
from mhimdist.errors import ClusterError
for mode in ("", "off", "none", "0", " token", "disabled", "x509"):
    os.environ["RAY_AUTH_MODE"] = mode
    try:
        refuse_open_cluster()
    except ClusterError as error:
        assert str(error).startswith(f"RAY_AUTH_MODE is {mode!r}, expected 'token': "), error
    else:
        print("taken:", repr(mode))
    refuse_open_cluster(insecure=True)
for mode in ("token", "TOKEN"):
    os.environ["RAY_AUTH_MODE"] = mode
    refuse_open_cluster()
del os.environ["RAY_AUTH_MODE"]
refuse_open_cluster()
print(os.environ["RAY_AUTH_MODE"])
"""


@pytest.mark.faults(39)
def test_every_mode_that_ray_takes_for_none_is_refused(tmp_path):
    done = _run(MODES_THAT_RAY_TAKES_FOR_NONE, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "token\n", "")


LISTEN = """
import json, os, psutil, ray
from mhimdist.cluster.connect import connect
from mhimdist.process import run
def main():
    connect(dashboard=True)
    assert ray.get(ray.remote(lambda: 42).options(num_cpus=1).remote()) == 42
    ports = [
        (p.name(), c.laddr.ip)
        for p in psutil.Process().children(recursive=True)
        for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    ]
    print(json.dumps({"ports": ports, "folder": ray._private.worker._global_node.get_session_dir_path()}))
    ray.shutdown()
run(main)
"""


@pytest.mark.faults(36)
@pytest.mark.ray("idle heads")
def test_a_job_started_by_hand_is_shut(tmp_path):
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir(mode=0o755)
    token.write_text("a" * 64)
    token.chmod(0o644)  # as Ray's own command leaves it
    done = _run(LISTEN, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = {name for name, _ in found["ports"]}
    assert {"gcs_server", "raylet"} <= names
    assert not [port for port in found["ports"] if port[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    private = next(p for p in Path(found["folder"]).parents if p.name.startswith("mhim-"))
    assert private.stat().st_mode & 0o777 == 0o700


JOIN = """
import os
from mhimdist.cluster.connect import connect
from mhimdist.process import run
run(connect)
"""
OPEN_HEAD = """
import os, ray, sys
ray.init(
    address="local", include_dashboard=False, log_to_driver=False, num_cpus=1, _node_ip_address="127.0.0.1"
)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.mark.faults(36)
@pytest.mark.ray("idle heads")
def test_an_open_cluster_is_not_joined_by_a_process_with_a_token(tmp_path):
    env = {**os.environ, "RAY_AUTH_MODE": "none", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_HEAD],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as head:
        try:
            address = head.stdout.readline().strip()
            (tmp_path / ".ray").mkdir()
            (tmp_path / ".ray/auth_token").write_text("a" * 64)
            done = _run(JOIN, tmp_path, RAY_ADDRESS=address)
        finally:
            head.stdin.close()
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the cluster at {address} asks for no token: ")


def test_a_token_is_made_once_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    file = tmp_path / ".ray/auth_token"
    authentication.keep_token_private()
    assert not file.exists()
    authentication.keep_token_private(create=True)
    token = file.read_text()
    assert len(token) == 64
    authentication.keep_token_private(create=True)
    assert file.read_text() == token
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_token_file_by_another_name_is_closed_where_it_is(tmp_path, monkeypatch):
    named = tmp_path / "shared/token"
    named.parent.mkdir(mode=0o755)
    named.write_text("a" * 64)
    named.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    authentication.keep_token_private(create=True)
    assert (named.stat().st_mode & 0o777, named.parent.stat().st_mode & 0o777) == (0o600, 0o755)


DECOY = """
import ray
from mhimdist.cluster.connect import connect
from mhimdist.process import run
def main():
    connect()
    print(ray.get_runtime_context().gcs_address)
    ray.shutdown()
run(main)
"""


@pytest.mark.faults(36)
@pytest.mark.slow
@pytest.mark.ray("idle heads")
def test_a_strangers_cluster_that_announces_itself_is_not_joined():
    with socket.socket() as listening, tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        for folder in (Path(short, "ray"), Path(short, f"mhim-{os.geteuid()}", "ray")):
            folder.mkdir(parents=True)
            (folder / "ray_current_cluster").write_text(address)
        done = _run(DECOY, short, TMPDIR=short, RAY_TMPDIR=short)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != address
    assert done.stdout.startswith("127.0.0.1:")
