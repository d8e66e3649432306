import pytest

from mhimdist.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000254321, "0.000254"),
        (0.00001, "1e-5"),
        (0.5, "0.5"),
        (2.0, "2"),
        (12345.6, "12346"),
        (0.9999, "0.9999"),
        (0.99923456, "0.999235"),
        (2021, "2021"),
        (True, "true"),
        (None, "-"),
        ("cosine", "cosine"),
        ([1, 2], "[1, 2]"),
        (float("nan"), "nan"),
        (-0.0123456, "-0.0123"),
    ],
)
def test_setting(value: object, text: str) -> None:
    assert formats.setting(value) == text


def test_settings_that_differ_look_different() -> None:
    assert formats.setting_pair(0.1, 0.10001) == ("0.1", "0.10001")
    assert formats.setting_pair(0.1, 0.2) == ("0.1", "0.2")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (59.97, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599.6, "1 h 00 min"),
        (7260, "2 h 01 min"),
        (90000, "1 d 01 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert formats.duration(seconds) == text


def test_auc_has_three_decimals_and_none_is_a_dash() -> None:
    assert [formats.auc(value) for value in (0.95, 1.0, None, float("nan"))] == ["0.950", "1.000", "-", "-"]


def test_count() -> None:
    assert [formats.count(n, "trial") for n in (0, 1, 2, 1200)] == [
        "0 trials",
        "1 trial",
        "2 trials",
        "1,200 trials",
    ]
