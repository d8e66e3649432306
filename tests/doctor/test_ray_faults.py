"""Faults of Ray's token, head and resources, planted, are named with their mends."""

import os
import socket
from pathlib import Path

import pytest
from planted import dead_address, only, token_of

from mhimdist.doctor import child, probes, ray_cluster
from mhimdist.doctor.options import Doctor
from mhimdist.errors import ClusterError


def test_a_token_that_others_can_read(job: Doctor, tmp_path: Path):
    assert only(ray_cluster.token(job)).status == "fine"
    file = token_of(tmp_path, 0o644)
    found = only(ray_cluster.token(job))
    assert (found.status, found.mend) == ("mend", f"close it: `chmod 600 {file}`")
    assert "mode 0644" in found.found
    file.chmod(0o600)
    assert only(ray_cluster.token(job)).status == "fine"
    file.parent.chmod(0o777)
    assert f"chmod 700 {file.parent}" in only(ray_cluster.token(job)).mend
    file.parent.chmod(0o700)
    file.write_text("")
    assert "ray get-auth-token --generate" in only(ray_cluster.token(job)).mend


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_token_of_another_user(job: Doctor, tmp_path: Path):
    os.chown(token_of(tmp_path, 0o600), 12345, -1)
    found = only(ray_cluster.token(job))
    assert found.status == "mend"
    assert "belongs to user 12345" in found.found
    assert "ray get-auth-token --generate" in found.mend


def test_a_token_that_is_named_and_missing(job: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    found = only(ray_cluster.token(job))
    assert found.status == "mend"
    assert "scp HEAD:.ray/auth_token" in found.mend


def test_a_head_that_is_dead(job: Doctor):
    address = dead_address()
    found = only(ray_cluster.cluster(job.model_copy(update={"address": address})))
    assert found.status == "mend"
    assert f"nothing answers at {address}" in found.found
    assert "ray start --head --port 6379" in found.mend


def test_a_head_that_never_answers(job: Doctor, monkeypatch: pytest.MonkeyPatch):
    """A port that takes connections and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        silent = job.model_copy(update={"address": address, "timeout_s": 1.0})
        found = only(ray_cluster.cluster(silent))
    assert found.status == "mend"
    assert "joining it failed: no answer within 1 s" in found.found


@pytest.mark.parametrize("address", ["http://10.0.0.1:8265", "head", "10.0.0.1:port", "10.0.0.1:99999999"])
def test_an_address_of_no_head(job: Doctor, address: str):
    found = only(ray_cluster.cluster(job.model_copy(update={"address": address})))
    assert found.status == "mend"
    assert address in found.found


def test_a_run_that_fits_on_no_node(job: Doctor):
    found = list(ray_cluster.cluster(job.model_copy(update={"cpus_per_run": 5000.0})))[-1]
    assert (found.subject, found.status) == ("resources", "mend")
    assert "5000 cores" in found.found
    assert "--cpus-per-run" in found.mend


@pytest.mark.parametrize(("mode", "status"), [("tokn", "mend"), ("none", "mend"), ("TOKEN", "fine")])
def test_a_misspelt_mode_of_authentication(
    job: Doctor, monkeypatch: pytest.MonkeyPatch, mode: str, status: str
):
    """What Ray makes of a value is asked in a process; here the answer is Ray's own, given in this one."""
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(child, "ask", asked_here)
    version, found = ray_cluster.access(job)
    assert (version.status, found.subject, found.status) == ("fine", "authentication", status)
    assert (found.mend is not None and "export RAY_AUTH_MODE=token" in found.mend) == (status == "mend")
    accepted = list(ray_cluster.access(job.model_copy(update={"insecure": True})))[-1]
    assert accepted.status == ("warning" if status == "mend" else "fine")


def asked_here(question: str, *arguments: str, timeout_s: float, env: None) -> dict:
    try:
        return probes.QUESTIONS[question](*arguments)
    except ClusterError as error:
        return {"refused": str(error)}
