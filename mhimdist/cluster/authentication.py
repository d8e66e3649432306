"""What keeps strangers out of Ray: its token is in force, and only this user can read it.

Ray takes every value of RAY_AUTH_MODE but `token`, in small or capital letters, for "no authentication": an
empty one, a typo, `none`. So the value is not read here; Ray says what is in force.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from ray import _raylet
from ray._private import ray_constants

from mhimdist.errors import ClusterError

_ray: Any = _raylet  # compiled, and without types
_MODE = "RAY_AUTH_MODE"
_TOKEN_FILE = Path(".ray/auth_token")  # below the user's home, where Ray looks for it
_ADVICE = (
    "without a token, anyone who reaches a port of the cluster can run commands on it. Make a token by "
    "`ray get-auth-token --generate`, or give --insecure in a network that nobody else reaches"
)
# Any call does: the head checks the token before it looks at the request.
_HARMLESS_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def require_token_mode() -> None:
    """Have Ray ask for its token in this process and its children, as it does itself if nothing is set.

    Raises:
        ClusterError: RAY_AUTH_MODE has a value by which Ray asks for no token.
    """
    os.environ.setdefault(_MODE, "token")
    _ray.Config.initialize("")  # Ray reads the environment once, when it is imported
    if _ray.get_authentication_mode() != _ray.AuthenticationMode.TOKEN:
        raise ClusterError(
            f"{_MODE} is {os.environ[_MODE]!r}, expected 'token': Ray takes it for no authentication, and "
            f"{_ADVICE}"
        )


def require_closed(address: str, timeout_s: float) -> None:
    """Refuse a cluster whose head answers a caller without a token, whatever this process's settings are.

    Args:
        address: host and port of the cluster's head.
        timeout_s: seconds to wait for its answer.

    Raises:
        ClusterError: the head answers.
    """
    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return  # only Ray has the certificates, and who has none gets no answer
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_HARMLESS_CALL)(b"", timeout=timeout_s)
        except grpc.RpcError as refusal:
            if refusal.code() == grpc.StatusCode.UNAUTHENTICATED:
                return
            raise ClusterError(
                f"the cluster at {address}: expected that it refuses a caller without a token, got "
                f"{refusal.code().name}: {refusal.details()}"
            ) from None
    raise ClusterError(
        f"the cluster at {address} asks for no token: {_ADVICE}. A head asks for one if it starts with "
        f"{_MODE}=token"
    )


def keep_token_private(*, create: bool = False) -> None:
    """Let only this user read the token and enter its folder.

    Ray creates the file with the mode that the umask leaves, usually readable by all users of the machine. A
    file that RAY_AUTH_TOKEN_PATH names is closed too, but not created, and its folder stays as it is.

    Args:
        create: make a token if there is none, before Ray does.

    Raises:
        OSError: the file cannot be written or closed.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named).expanduser() if named else Path.home() / _TOKEN_FILE
    if not named and create:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        if not file.exists():
            _create(file)
    if not named and file.exists():
        _close(file.parent)
    if file.exists():
        _close(file)


def _create(file: Path) -> None:
    """Write a new token; of two processes that do so at once, both take the first one's."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32))
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink(missing_ok=True)


def _close(path: Path) -> None:
    """Take all rights of other users; what belongs to another user is his to close."""
    found = path.stat()
    open_to_others = stat.S_IMODE(found.st_mode) & 0o077
    if open_to_others and found.st_uid == os.geteuid():
        path.chmod(stat.S_IMODE(found.st_mode) & ~0o077)


@contextmanager
def loopback_only() -> Iterator[None]:
    """A context in which a Ray that is started stays on the loopback interface.

    Ray replaces a loopback node address by the machine's own address and listens on all interfaces, unless it
    keeps to one node. This is its switch for that, named after the systems where it is the default.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    outside = os.environ.get(name)
    os.environ[name] = "0"  # for Ray's processes
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the environment
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if outside is None:
            del os.environ[name]
        else:
            os.environ[name] = outside
