"""Each fault, planted on the machine as far as it can be, is named with its mend."""

import http.server
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jsonschema
import pytest
from feature_folders import shard_folder, write_features
from planted import dead_address, only, token_of

from mhimdist.doctor import home_folder, locks, machine, mounts, packages, shards
from mhimdist.doctor.findings import Area, Diagnosis, Finding
from mhimdist.doctor.options import Doctor


def test_a_home_that_cannot_be_written(job: Doctor):
    assert only(home_folder.writable(job)).status == "fine"
    folder = job.home
    if os.geteuid() == 0:  # whom no mode stops
        folder = Path("/proc/self/task/mhimdist")
    else:
        folder.chmod(0o500)
    closed = job.model_copy(update={"home": folder})
    found = only(home_folder.writable(closed))
    assert found.status == "mend"
    assert f"{folder} cannot be written" in found.found
    assert "sudo chown" in found.mend
    assert "export MHIMDIST_HOME=" in found.mend
    assert not [*locks.locks(closed), *home_folder.renames(closed), *home_folder.clock(closed)]


def test_a_home_that_does_not_exist_is_not_made(job: Doctor):
    later = job.model_copy(update={"home": job.home / "not" / "yet"})
    found = only(home_folder.writable(later))
    assert found.status == "fine"
    assert f"will be made in {job.home}" in found.found
    assert list(job.home.iterdir()) == []


class OpenLock:
    """A lock that everybody gets, as on a file system that only pretends."""

    def __init__(self, path: Path) -> None:
        assert path.name == "lock"

    def acquire(self, wait_s: float | None = None) -> bool:
        return True

    def release(self) -> None:
        pass


class RefusedLock(OpenLock):
    """A lock of a file system that has none."""

    def acquire(self, wait_s: float | None = None) -> bool:
        raise OSError(37, os.strerror(37))


class StuckLock(OpenLock):
    """A lock that outlives its holder."""

    def acquire(self, wait_s: float | None = None) -> bool:
        return False


def test_a_lock_that_does_not_lock(job: Doctor):
    assert only(locks.locks(job)).status == "fine"
    for lock, said in [
        (OpenLock, "two processes held the same lock at a time: flock"),
        (RefusedLock, "No locks available"),
        (StuckLock, "the lock of a killed process is not released"),
    ]:
        found = only(locks.locks(job, lock))
        assert (found.area, found.status) == ("home", "mend")
        assert said in found.found
        assert "export MHIMDIST_HOME=" in found.mend
    assert list(job.home.iterdir()) == []


def test_a_shard_that_is_cut(job: Doctor, tmp_path: Path):
    write_features(tmp_path)
    folder = shard_folder(tmp_path, shard_bytes=4_000)
    whole = job.model_copy(update={"data": str(folder)})
    assert [each.status for each in shards.shards(whole)] == ["fine", "fine"]
    victim = sorted(folder.glob("*.tar"))[1]
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size // 2)
    found = only(shards.shards(whole))
    assert found.status == "mend"
    assert victim.name in found.found
    assert f"python -m data_prep.verify {folder}" in found.mend
    (folder / "manifest.parquet").unlink()
    assert only(shards.shards(whole)).status == "mend"
    missing = only(shards.shards(job.model_copy(update={"data": "digits-c16"})))
    assert "python -m data_prep.digits digits-c16" in missing.mend


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_remote_shard_that_is_changed(job: Doctor, tmp_path: Path):
    write_features(tmp_path)
    folder = shard_folder(tmp_path, shard_bytes=4_000)
    with served(folder) as url:
        remote = job.model_copy(update={"data": url})
        assert [each.status for each in shards.shards(remote)] == ["fine", "fine"]
        victim = sorted(folder.glob("*.tar"))[0]
        content = bytearray(victim.read_bytes())
        content[700] ^= 1
        victim.write_bytes(content)
        found = only(shards.shards(remote))
        absent = only(shards.shards(job.model_copy(update={"data": f"{url}/nowhere"})))
    assert (found.status, absent.status) == ("mend", "mend")
    assert f"{url}/nowhere" in absent.found
    assert f"{victim.name} has sha256" in found.found
    assert "python -m data_prep.verify" in found.mend


def test_few_open_files(job: Doctor):
    code = (
        "from mhimdist.doctor import machine; from mhimdist.doctor.options import Doctor;"
        "print(next(machine.open_files(Doctor())).model_dump_json())"
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for soft, highest, mend in [(200, hard, f"ulimit -n {min(hard, 65536)}"), (200, 300, "limits.conf")]:

        def limit(soft: int = soft, highest: int = highest) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, highest))

        done = subprocess.run(
            [sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=True
        )
        found = Finding.model_validate_json(done.stdout)
        assert found.status == "mend"
        assert "200 open files per process" in found.found
        assert mend in found.mend


def fake_distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")


def test_a_triton_that_is_not_the_pair_of_torch(job: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_distribution(tmp_path / "a", "torch", "2.13.0", 'triton==3.7.9; platform_system == "Linux"')
    monkeypatch.syspath_prepend(tmp_path / "a")
    found = only(packages.triton(job))
    assert found.status == "mend"
    assert "this torch was built for triton==3.7.9" in found.found
    assert "python -m pip install 'triton==3.7.9'" in found.mend
    fake_distribution(tmp_path / "b", "triton", "3.7.9")
    monkeypatch.syspath_prepend(tmp_path / "b")
    assert only(packages.triton(job)).status == "fine"


def test_a_package_of_another_release(job: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert next(packages.required(job)).status == "fine"
    fake_distribution(tmp_path / "a", "optuna", "3.0.0")
    monkeypatch.syspath_prepend(tmp_path / "a")
    found, tested = packages.required(job)
    assert found.status == "mend"
    assert "optuna is 3.0.0, expected <6,>=4" in found.found
    assert "python -m pip install 'optuna<6,>=4'" in found.mend
    assert tested.status == "warning"
    assert "optuna 3.0.0 (tested: " in tested.found
    assert "--constraint" in tested.mend


def test_a_package_that_slows_down_the_start_of_ray(
    job: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert only(packages.slowing(job)).status == "fine", "it would slow down these tests"
    fake_distribution(tmp_path / "a", "rfc3987_syntax", "1.1.0")
    monkeypatch.syspath_prepend(tmp_path / "a")
    found = only(packages.slowing(job))
    assert found.status == "warning"
    assert "python -m pip uninstall rfc3987-syntax" in found.mend


def in_own_mounts(script: str, job: Doctor, code: str) -> list[Finding]:
    """What a check finds in a process with mounts of its own, which only it sees."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    alone = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    program = (
        "import json; from pathlib import Path; from mhimdist.doctor import home_folder, machine;"
        "from mhimdist.doctor.options import Doctor;"
        f"job = Doctor(home=Path({str(job.home)!r}));"
        f"print(json.dumps([each.model_dump() for each in ({code})]))"
    )
    done = subprocess.run(
        [*alone, "sh", "-ec", f'{script}; exec "$0" -c "$1"', sys.executable, program],
        capture_output=True,
        text=True,
        check=True,
    )
    return [Finding(**each) for each in json.loads(done.stdout)]


def test_a_home_in_memory_that_is_full(job: Doctor):
    script = f"mount -t tmpfs -o size=1m none {job.home}"
    kind, room, written = in_own_mounts(
        script,
        job,
        "[*home_folder.file_system(job), *home_folder.space(job), *home_folder.writable(job)]",
    )
    assert (kind.status, kind.subject) == ("warning", "file system")
    assert "is on tmpfs" in kind.found
    assert "a reboot loses it" in kind.found
    assert (room.status, room.subject) == ("mend", "free space")
    assert "1.0 MiB of 1.0 MiB free" in room.found
    assert (written.status, written.subject) == ("mend", "writing")
    assert "do not fit" in written.found
    for each in (kind, room, written):
        assert "export MHIMDIST_HOME=" in each.mend


def test_a_tiny_shared_memory(job: Doctor):
    (found,) = in_own_mounts("mount -t tmpfs -o size=64m none /dev/shm", job, "machine.shared_memory(job)")
    assert found.status == "mend"
    assert "/dev/shm has 64.0 MiB" in found.found
    assert "docker run --shm-size=" in found.mend


@pytest.mark.parametrize(
    ("total", "free", "memory", "status", "mend"),
    [
        (64 * 2**20, 64 * 2**20, 64 * 2**30, "mend", "--shm-size=21g"),
        (10 * 2**30, 10 * 2**30, 64 * 2**30, "warning", "remount,size=50%"),
        (32 * 2**30, 2**30, 64 * 2**30, "warning", "ls -lS"),
        (32 * 2**30, 30 * 2**30, 64 * 2**30, "fine", None),
    ],
)
def test_the_sizes_of_shared_memory(total: int, free: int, memory: int, status: str, mend: str | None):
    found = machine.shared_memory_finding(total, free, memory)
    assert found.status == status
    assert mend is None or mend in found.mend


@pytest.mark.parametrize(("told", "status"), [("4096", "warning"), ("many", "warning"), ("1", "fine")])
def test_more_threads_than_cores(job: Doctor, monkeypatch: pytest.MonkeyPatch, told: str, status: str):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    found = list(machine.threads(job))[-1]
    assert found.status == status
    assert (found.mend is not None and "unset OMP_NUM_THREADS" in found.mend) == (status == "warning")


@pytest.mark.parametrize(("skew_s", "status"), [(0.0, "fine"), (7.0, "warning"), (4000.0, "mend")])
def test_a_clock_that_is_wrong(job: Doctor, skew_s: float, status: str):
    found = home_folder.skew_finding(skew_s)
    assert found.status == status
    assert (found.mend is not None and "chronyc makestep" in found.mend) == (status != "fine")
    assert only(home_folder.clock(job)).status == "fine"


@pytest.mark.parametrize(
    ("kind", "options", "status", "said"),
    [
        ("nfs4", "rw,vers=4.2,local_lock=none", "fine", "several machines can see"),
        ("nfs", "rw,vers=3,nolock,local_lock=all", "mend", "remount,local_lock=none"),
        ("lustre", "rw,flock", "fine", "several machines can see"),
        ("lustre", "rw,localflock", "mend", "remount,flock"),
        ("overlay", "rw,lowerdir=/a", "warning", "docker run --volume"),
        ("tmpfs", "rw,size=1g", "warning", "a reboot loses it"),
        ("fuse.gcsfuse", "rw", "mend", "read the data by their URL"),
        ("xfs", "rw", "warning", "the other nodes of the cluster do not see"),
    ],
)
def test_file_systems(tmp_path: Path, kind: str, options: str, status: str, said: str):
    (tmp_path / "a home").mkdir()
    point = str(tmp_path / "a home").replace(" ", "\\040")
    listed = tmp_path / "mountinfo"
    listed.write_text(
        "20 1 8:1 / / rw - ext4 /dev/sda rw\n"
        f"21 20 0:5 / {point} rw,noatime shared:7 - {kind} srv:/x {options}\n"
    )
    mount = mounts.mount_of(tmp_path / "a home", listed)
    assert (mount.kind, mount.point) == (kind, tmp_path / "a home")
    found = mounts.finding_of(Area("home"), mount, "home", for_nodes=True)
    assert found.status == status
    assert said in f"{found.found} {found.mend}"


@pytest.mark.slow  # the tests above plant the same faults one by one
def test_the_command_names_what_is_planted_and_exits_with_status_1(job: Doctor, tmp_path: Path):
    """All at once: the real command on a machine with seven faults."""
    token_of(tmp_path, 0o644)
    fake_distribution(tmp_path / "fake", "torch", "2.13.0", "triton==3.7.9")
    home = Path("/proc/self/task/mhimdist")
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "tokn",
        "RAY_ADDRESS": dead_address(),
        "MHIMDIST_HOME": str(home),
        "OMP_NUM_THREADS": "4096",
        "PYTHONPATH": f"{tmp_path / 'fake'}:{os.environ.get('PYTHONPATH', '')}:{Path.cwd()}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "mhimdist.doctor", "--json", "--data", "missing", "--timeout-s", "300"],
        env=env,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    jsonschema.validate(told, Diagnosis.model_json_schema(mode="serialization"))
    assert told["status"] == "mend"
    mends = {f"{each['area']}: {each['subject']}": each for each in told["findings"] if each["mend"]}
    expected = {
        "python: torch and Triton": "pip install 'triton==3.7.9'",
        "machine: threads": "unset OMP_NUM_THREADS",
        "machine: open files": "docker run --ulimit nofile=65536",
        "home: writing": "export MHIMDIST_HOME=",
        "ray: authentication": "export RAY_AUTH_MODE=token",
        "ray: token": "chmod 600",
        "ray: head": "ray start --head",
        "data: shards": "python -m data_prep.digits",
    }
    assert {name: text in mends[name]["mend"] for name, text in expected.items()} == dict.fromkeys(
        expected, True
    )
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    named = [f"{each['area']}: {each['subject']}" for each in told["findings"] if each["status"] == "mend"]
    assert set(expected) - {"machine: threads"} <= set(named)
    assert last == f"error: {len(named)} to mend: {', '.join(named)}"
