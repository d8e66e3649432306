import json
import sys

import pytest

from benchmarks import stragglers


@pytest.fixture
def few_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stragglers, "RANKS", (1, 8))
    monkeypatch.setattr(sys, "argv", ["stragglers", "--json"])


@pytest.mark.usefixtures("few_ranks")
def test_the_bars_at_8_ranks_with_the_real_sizes(capsys: pytest.CaptureFixture) -> None:
    stragglers.main()
    result = json.loads(capsys.readouterr().out)
    assert result["instances_per_rank"] == 50_000
    one, eight = result["rows"]
    names = ("distributed_sampler", "plain_random", "ours")
    assert set(one) == {"ranks", "bags", "steps", *names, "ours_worst", *(f"{name}_spread" for name in names)}
    assert (one["ranks"], eight["ranks"]) == (1, 8)
    assert [one[name] for name in names] == [1, 1, 1]
    assert eight["ours"] <= eight["ours_worst"] <= 1.10
    assert eight["ours_spread"] <= 0.02
    assert eight["ours"] < eight["plain_random"] < eight["distributed_sampler"]


@pytest.mark.usefixtures("few_ranks")
def test_the_table(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stragglers"])
    stragglers.main()
    text = capsys.readouterr().out
    for word in ("ranks", "DistributedSampler", "random", "ours", "50,000 instances"):
        assert word in text
