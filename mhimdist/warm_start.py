"""What an earlier sweep lends to a new one: its best configurations, unless they have seen its test cases."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.trial import TrialState

from mhimdist.data.splits import Split
from mhimdist.errors import SplitError, SweepError
from mhimdist.samplers import Params
from mhimdist.storage import hidden, read, sqlite_url
from mhimdist.sweep import Sweep

NUM_LENT = 3


def lent(sweep: Sweep, splits: Sequence[Split], case_of: Mapping[str, str]) -> list[Params]:
    """The parameters of the best complete trials of the sweep in `sweep.warm_from`, the best first.

    Args:
        sweep: the new one.
        splits: of it.
        case_of: the case of each of its bags, by key.

    Raises:
        SweepError: the folder is no sweep's, its study cannot be read or has no complete trial, or its trials
            were trained on or selected by test cases of the new sweep.
    """
    assert sweep.warm_from is not None
    # A job's directory is a copy without runs, so that a path is below the home wherever the job runs.
    folder = sweep.home.resolve() / sweep.warm_from
    what = f"warm_from {sweep.warm_from} ({folder})"
    try:
        earlier = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        url, name = str(earlier["url"]), str(earlier["name"])
    except (OSError, ValueError, KeyError) as error:
        raise SweepError(f"{what} is no sweep's folder: {error}") from None
    _check_cases(what, folder, splits, case_of)
    if (file := folder / "study.db").exists():  # also where the folder was moved
        url = sqlite_url(file)
    elif sweep.storage is not None and hidden(sweep.storage) == url:
        url = sweep.storage  # with its password
    try:
        trials = read(url, name)
    except KeyError:
        raise SweepError(f"{what}: storage {hidden(url)} has no study {name!r}") from None
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise SweepError(f"{what}: none of its {len(trials)} trials is complete")
    complete.sort(key=lambda trial: -trial.values[0])
    return [trial.params for trial in complete[:NUM_LENT]]


def _check_cases(what: str, folder: Path, splits: Sequence[Split], case_of: Mapping[str, str]) -> None:
    try:
        earlier = [Split.load(file) for file in sorted(folder.glob("split-*.json"))]
    except SplitError as error:
        raise SweepError(f"{what}: {error}") from None
    if not earlier:
        raise SweepError(f"{what} has no split-1.json: nothing says which cases its trials have seen")
    seen = {key for split in earlier for key in (*split.train, *split.validation)}
    seen_cases = {case_of[key] for key in seen if key in case_of}
    tested = {case_of[key] for split in splits for key in split.test}
    if both := sorted(tested & seen_cases):
        raise SweepError(
            f"{what} trained or validated its trials on {len(both)} of the {len(tested)} test cases of this "
            f"sweep, the first is {both[0]!r}: its best configurations were chosen by them, and a test on "
            "them would be none. Give this sweep the earlier one's split (split_seed, test_share, split_file)"
        )
