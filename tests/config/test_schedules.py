import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mhimdist.config.schedules import Schedule


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("constant", [0.8, 0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.6, 0.4, 0.2, 0.0]),
        ("cosine", [0.8, 0.6828427, 0.4, 0.1171573, 0.0]),
        ("step", [0.8, 0.5333333, 0.2666667, 0.0, 0.0]),
    ],
)
def test_values_along_a_run(kind, values):
    schedule = Schedule(start=0.8, kind=kind, end=0.0)
    assert [schedule.at(p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(values, abs=1e-6)


@given(
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    kind=st.sampled_from(["cosine", "linear", "step"]),
    progress=st.floats(0, 1),
)
def test_a_moving_schedule_stays_between_its_ends_and_meets_them(start, end, kind, progress):
    schedule = Schedule(start=start, kind=kind, end=end)
    assert min(start, end) - 1e-12 <= schedule.at(progress) <= max(start, end) + 1e-12
    assert schedule.at(0) == pytest.approx(start)
    assert schedule.at(1) == pytest.approx(end)
    assert schedule.peak == max(start, end)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValidationError):
        Schedule(kind="exponential")
