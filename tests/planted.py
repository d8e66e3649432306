"""Faults that several tests of the doctor plant."""

import socket
from collections.abc import Iterator
from pathlib import Path

from mhimdist.doctor.findings import Finding


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def token_of(tmp_path: Path, mode: int) -> Path:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir(mode=0o700)
    file.write_text("0" * 64)
    file.chmod(mode)
    return file


def dead_address() -> str:
    """An address at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"
