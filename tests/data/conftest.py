"""What the tests of data share."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server; the environment points to it."""
    # Imported here: the tests marked `gpu` run on machines that lack it, by `make gpu-check`.
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "none")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield f"http://{host}:{port}"
        server.stop()
