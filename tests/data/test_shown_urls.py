"""What is shown of a URL, and which passwords in one are refused."""

import pytest

from mhimdist.data.remote import is_remote, shown
from mhimdist.errors import ConfigError


@pytest.mark.faults(37)
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://user:hunter2@host/x?sig=hunter2", "https://***@host/x"),
        ("https://hunter2@host/x", "https://***@host/x"),
        ("https://user:hunter2@hunter2@host/x", "https://***@host/x"),
        ("abfs://data@account/x?sig=hunter2", "abfs://data@account/x"),
        ("abfs://:hunter2@account/data", "abfs://***@account/data"),
        ("sftp://ada@host/x", "sftp://ada@host/x"),
        ("sftp://ada:hunter2@host/x", "sftp://***@host/x"),
        ("no file s3://hunter2@b/x and //u:hunter2@c", "no file s3://***@b/x and //***@c"),
    ],
)
def test_a_url_is_shown_without_its_secrets_and_with_its_container(url: str, said: str) -> None:
    assert shown(url) == said


@pytest.mark.faults(37)
@pytest.mark.parametrize("url", ["abfs://:hunter2@account/data", "sftp://ada:hunter2@host/x"])
def test_a_password_is_refused_where_a_name_is_allowed(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials belong in the environment"):
        is_remote(url)
