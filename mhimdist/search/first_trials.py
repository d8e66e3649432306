"""The trials that a sweep begins with: its base, the authors' settings, the best of an earlier sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.trial import TrialState

from mhimdist import files
from mhimdist.config.presets import PRESETS, preset
from mhimdist.config.train import TrainConfig
from mhimdist.data.splits import Split
from mhimdist.errors import SplitError, SweepError
from mhimdist.search.options import Sweep
from mhimdist.search.proposals import Facts, Params, distinct, draw, fixed
from mhimdist.search.random_answers import holds
from mhimdist.search.space import BaseValues, Space, SpaceFunction
from mhimdist.search.storage import hidden, read, sqlite_url

NUM_EARLIER = 3
"""How many of an earlier sweep's best trials a new sweep begins with."""


def first_params(
    sweep: Sweep, space: SpaceFunction, facts: Facts, earlier: Sequence[Params] = ()
) -> tuple[list[Params], list[str]]:
    """The parameters of a sweep's first trials, and notes on them for the user.

    The first trials are the base, the authors' settings and the best of an earlier sweep.

    Args:
        sweep: says which of them are wanted.
        space: the search space.
        facts: the facts about the space.
        earlier: parameters of an earlier sweep's best trials.

    Returns:
        The parameters in the order of the trials, and the notes.
    """
    found, notes = [facts.base_params], []
    if sweep.warm_presets:
        found += _authors_settings(space, sweep.train)
    for params in earlier:
        outside = [n for n, value in params.items() if not holds(facts.distributions.get(n), value)]
        try:
            if outside:
                raise SweepError(f"it does not allow the trial's {', '.join(outside)}")
            drawn = draw(space, sweep.train, fixed(params))
            if drawn.unmet is not None:
                raise SweepError(f"the trial does not {drawn.unmet}")
            found.append(drawn.params)
        except SweepError as error:
            notes.append(f"a trial of {sweep.warm_from} is left out, as it is outside this space: {error}")
    found = [params for params in found if draw(space, sweep.train, fixed(params)).unmet is None]
    return distinct(found), notes


def _authors_settings(space: SpaceFunction, base: TrainConfig) -> list[Params]:
    """The parameters of those of the authors' presets for the base's model that are in the space."""
    found = []
    for dataset, model in PRESETS:
        if model != base.model.name:
            continue
        values = BaseValues(preset(dataset, model))
        try:
            space(Space(values))
            found.append(draw(space, base, fixed(values.params)).params)
        except SweepError:
            continue  # that preset is outside the space
    return found


def best_of_earlier(sweep: Sweep, splits: Sequence[Split], case_of: Mapping[str, str]) -> list[Params]:
    """The parameters of the best complete trials of the sweep in `sweep.warm_from`, the best first.

    Args:
        sweep: the new sweep.
        splits: the new sweep's splits.
        case_of: the case of each bag, by key.

    Raises:
        SweepError: the folder is not a sweep's, its study cannot be read or has no complete trial, or its
            trials were trained on, or selected by, test cases of the new sweep.
    """
    assert sweep.warm_from is not None, "it is called for a sweep with warm_from"
    # A job runs in a copy of its directory without runs, so a relative path is taken from the home.
    folder = sweep.home.resolve() / sweep.warm_from
    what = f"warm_from {sweep.warm_from} ({folder})"
    try:
        earlier = files.parse_json((folder / "sweep.json").read_text(encoding="utf-8"))
        url, name = str(earlier["url"]), str(earlier["name"])
    except (OSError, ValueError, KeyError) as error:
        raise SweepError(f"{what} is not a sweep's folder: {error}") from None
    _check_cases(what, folder, splits, case_of)
    if (file := folder / "study.db").exists():  # also if the folder was moved
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
    return [trial.params for trial in complete[:NUM_EARLIER]]


def _check_cases(what: str, folder: Path, splits: Sequence[Split], case_of: Mapping[str, str]) -> None:
    try:
        earlier = [Split.load(file) for file in sorted(folder.glob("split-*.json"))]
    except SplitError as error:
        raise SweepError(f"{what}: {error}") from None
    if not earlier:
        raise SweepError(f"{what} has no split-1.json, so nothing says which cases its trials have seen")
    seen = {key for split in earlier for key in (*split.train, *split.validation)}
    seen_cases = {case_of[key] for key in seen if key in case_of}
    tested = {case_of[key] for split in splits for key in split.test}
    if both := sorted(tested & seen_cases):
        raise SweepError(
            f"{what} trained or validated its trials on {len(both)} of the {len(tested)} test cases of this "
            f"sweep, such as {both[0]!r}: they helped to choose its best configurations and can no longer "
            "test them. Give this sweep the split of the earlier one (split_seed, test_share, split_file)"
        )
