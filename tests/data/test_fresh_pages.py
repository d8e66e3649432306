"""Pages for new memory: asked for ahead, huge ones while these are quick, and what holds something stays."""

import resource
import time
from collections.abc import Iterator

import numpy as np
import pytest

from mhimdist.data import fresh_pages
from mhimdist.data.fresh_pages import HUGE_BYTES, MOST_SLOW, SLOW_S

PIECES = 6


@pytest.fixture
def memory_TB() -> np.ndarray:
    """Memory that begins where a huge page does."""
    memory = fresh_pages.new((PIECES + 1) * HUGE_BYTES)
    shift = -memory.ctypes.data % HUGE_BYTES
    return memory[shift : shift + PIECES * HUGE_BYTES]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What the system is asked for: addresses and advice."""
    calls: list[tuple[int, int, int]] = []
    advise = fresh_pages._advise

    def note(start: int, end: int, advice: int) -> bool:
        calls.append((start, end, advice))
        return advise(start, end, advice)

    monkeypatch.setattr(fresh_pages, "_advise", note)
    return calls


def clock(monkeypatch: pytest.MonkeyPatch, taken_s: list[float]) -> None:
    """Let each request take so long by the clock that decides."""

    def ticks() -> Iterator[float]:
        now = 0.0
        for taken in taken_s:
            yield now
            now += taken
            yield now

    running = ticks()
    monkeypatch.setattr(time, "thread_time", lambda: next(running))


def test_populated_memory_needs_no_page_when_it_is_filled(memory_TB: np.ndarray) -> None:
    fresh_pages.populate(memory_TB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory_TB[::4096] = 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 64


def test_what_holds_something_keeps_it_and_is_not_asked_for_again(
    memory_TB: np.ndarray, asked: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, [0.0] * PIECES)
    part = memory_TB[HUGE_BYTES : 3 * HUGE_BYTES]
    part[:] = np.arange(len(part)) % 251
    fresh_pages.populate(memory_TB)
    pieces = [(start - memory_TB.ctypes.data) // HUGE_BYTES for start, *_ in asked]
    assert pieces == [0, 3, 4, 5]
    assert (part == np.arange(len(part)) % 251).all()
    assert not memory_TB[:HUGE_BYTES].any()
    asked.clear()
    fresh_pages.populate(memory_TB[5:-7])
    assert not asked


def test_small_pages_follow_where_huge_ones_are_slow(
    memory_TB: np.ndarray, asked: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, [2 * SLOW_S, 0.0, 2 * SLOW_S, 0.0])
    assert MOST_SLOW == 2
    fresh_pages.populate(memory_TB)
    start, end = memory_TB.ctypes.data, memory_TB.ctypes.data + memory_TB.nbytes
    turn = start + 3 * HUGE_BYTES
    assert asked[3:] == [(turn, end, fresh_pages._NOHUGEPAGE), (turn, end, fresh_pages._POPULATE_WRITE)]
    assert [(first - start) // HUGE_BYTES for first, *_ in asked[:3]] == [0, 1, 2]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory_TB[::4096] = 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 64


def test_an_old_kernel_is_asked_once(memory_TB: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refuse(start: int, end: int, advice: int) -> bool:
        calls.append(advice)
        return False

    monkeypatch.setattr(fresh_pages, "_advise", refuse)
    fresh_pages.populate(memory_TB)
    assert calls == [fresh_pages._POPULATE_WRITE]
    memory_TB[:] = 7
    assert (memory_TB == 7).all()


def test_a_part_of_any_start_and_length(memory_TB: np.ndarray) -> None:
    for start, end in ((0, 0), (1, 2), (4095, 4097), (HUGE_BYTES - 1, HUGE_BYTES + 1)):
        fresh_pages.populate(memory_TB[start:end])
    assert not memory_TB.any()
