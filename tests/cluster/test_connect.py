"""Joining Ray: an address without a cluster is named within seconds, and a batch system's limits too."""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from mhimdist.cluster import connect
from mhimdist.errors import ClusterError

ROOT = Path(__file__).parents[2]


def _run(program, preexec=None, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**env, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", **environment},
        preexec_fn=preexec,
        capture_output=True,
        text=True,
        timeout=300,
    )


CONNECT = """
from mhimdist.cluster.connect import connect
from mhimdist.process import run
run(connect)
"""


@pytest.fixture
def silent_port():
    """A port at which something listens that never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def unused_port():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


@pytest.mark.long
def test_a_stale_address_is_named_within_seconds(unused_port):
    started = time.monotonic()
    done = _run(CONNECT, RAY_ADDRESS=f"127.0.0.1:{unused_port}")
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: no cluster answers at 127.0.0.1:{unused_port} (RAY_ADDRESS) within 10 s. Start the cluster"
    )
    assert time.monotonic() - started < 60  # the issue asks for 15 s; the tests may share busy cores


def test_something_else_that_listens_is_no_cluster(silent_port):
    with pytest.raises(ClusterError, match=rf"no cluster answers at 127\.0\.0\.1:{silent_port}"):
        connect._require_answer(f"127.0.0.1:{silent_port}", timeout_s=0.5)


def test_a_host_without_an_address_is_named():
    with pytest.raises(ClusterError, match=r"no cluster answers at no-such-host\.invalid:6379"):
        connect._require_answer("no-such-host.invalid:6379", timeout_s=0.5)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_of_another_kind_is_refused_with_the_way_to_submit(address):
    with pytest.raises(
        ClusterError, match=r"expected the host and port of a cluster's head.*cluster\.submit"
    ):
        connect._require_answer(address)


@pytest.mark.parametrize(("address", "joins"), [("", False), ("local", False), ("auto", True)])
def test_which_addresses_ask_to_join_a_cluster(monkeypatch, address, joins):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert connect._is_asked_to_join() is joins


def test_a_small_limit_on_address_space_is_named(monkeypatch):
    limit = 6 * 2**30
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    with pytest.raises(ClusterError, match=r"6\.0 GiB of address space \(ulimit -v\).*`ulimit -v unlimited`"):
        connect.require_address_space()


@pytest.mark.parametrize("limit", [resource.RLIM_INFINITY, 2**50])
def test_a_large_limit_on_address_space_is_taken(monkeypatch, limit):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    connect.require_address_space()


def test_rays_files_are_in_a_short_folder_that_only_this_user_enters(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        monkeypatch.setattr(connect.tempfile, "gettempdir", lambda: short)
        found = Path(connect._temp_dir())
        assert found == Path(short, f"mhim-{os.geteuid()}", "ray")
        found.parent.chmod(0o755)
        assert Path(connect._temp_dir()) == found
        assert found.parent.stat().st_mode & 0o777 == 0o700

        monkeypatch.setattr(connect.tempfile, "gettempdir", lambda: short + "/job" * 20)
        assert connect._temp_dir() == f"/tmp/mhim-{os.geteuid()}/ray"
        monkeypatch.setenv("RAY_TMPDIR", short)
        assert Path(connect._temp_dir()) == found


def test_a_folder_under_rays_name_that_another_made_is_not_entered(monkeypatch, tmp_path):
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        Path(short, f"mhim-{os.geteuid()}").symlink_to(tmp_path)
        private = Path(connect._temp_dir()).parent
        assert private.parent == Path(short)
        assert not private.is_symlink()
        assert private.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
@pytest.mark.ray
def test_a_batch_systems_long_tmpdir_still_starts_ray(tmp_path):
    folder = tmp_path / "a-long-temporary-directory-of-a-batch-system" / "job-123456789-with-more-words-in-it"
    folder.mkdir(parents=True)
    program = """
import ray
from mhimdist.cluster.connect import connect
connect()
print(ray.get(ray.remote(lambda: 42).options(num_cpus=1).remote()))
ray.shutdown()
"""
    done = _run(program, TMPDIR=str(folder))
    assert (done.returncode, done.stdout.strip()) == (0, "42"), done.stderr


@pytest.fixture
def starts(monkeypatch):
    """Ray's starts, each with a process of its own; the first ones, as many as are asked for, time out."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(connect, "keep_token_private", lambda **named: None)
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    started = []

    def fail(times):
        def init(**named):
            started.append(subprocess.Popen(["sleep", "600"]))
            if len(started) <= times:
                raise Exception("The current node timed out during startup. This could happen because ...")

        monkeypatch.setattr(connect.ray, "init", init)
        return started

    yield fail
    for process in started:
        process.kill()
        process.wait()


def test_a_ray_that_does_not_start_in_time_is_started_again(starts, caplog):
    started = starts(times=2)
    connect.connect()
    assert [psutil.pid_exists(process.pid) for process in started] == [False, False, True]
    assert [record.getMessage() for record in caplog.records] == [
        "Ray did not start within its 30 s: this machine is busy; trying again"
    ] * 2


def test_a_ray_that_never_starts_in_time_is_our_error(starts):
    started = starts(times=9)
    with pytest.raises(ClusterError, match=r"Ray did not start \(The current node timed out .*too busy"):
        connect.connect()
    assert [psutil.pid_exists(process.pid) for process in started] == [False] * 3


SLOW_TWICE = """
import os
import psutil
import ray
from ray._private import node, services
from mhimdist.cluster.connect import connect

init, get_node, code = ray.init, services.get_node, node.Node.__init__.__code__
assert code.co_consts.count(30) == 1
impatient, starts = code.replace(co_consts=tuple(-1 if c == 30 else c for c in code.co_consts)), []

def started(**named):
    starts.append(0)
    node.Node.__init__.__code__ = impatient if len(starts) < 3 else code
    return init(**named)

def late(*arguments):
    if len(starts) < 3:
        raise RuntimeError("not yet")
    return get_node(*arguments)

ray.init, services.get_node = started, late
connect()
assert len(starts) == 3
names = [process.name() for process in psutil.Process().children(recursive=True)]
assert names.count("gcs_server") == names.count("raylet") == 1, names
assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
ray.shutdown()
assert not psutil.Process().children(recursive=True)
print("all went well")
"""


@pytest.mark.slow
@pytest.mark.ray
def test_ray_itself_starts_again_and_leaves_nothing():
    done = _run(SLOW_TWICE)
    assert done.stdout.endswith("all went well\n"), done.stderr


SILENT_FOR_LONG = """
import time
import psutil
import ray
from mhimdist.cluster.connect import connect

connect()
actor = ray.remote(type("Actor", (), {"number": lambda self: 7})).remote()
assert ray.get(actor.number.remote()) == 7
(raylet,) = (each for each in psutil.Process().children(recursive=True) if each.name() == "raylet")
raylet.suspend()
time.sleep(100)
raylet.resume()
assert ray.get(actor.number.remote()) == 7
assert [node["Alive"] for node in ray.nodes()] == [True]
print("all went well")
"""


@pytest.mark.slow
@pytest.mark.ray
def test_the_only_node_is_not_called_dead_when_it_is_slow():
    """By Ray's own settings it is, before 100 s have passed, and its process then aborts."""
    done = _run(SILENT_FOR_LONG)
    assert done.stdout.endswith("all went well\n"), done.stderr
