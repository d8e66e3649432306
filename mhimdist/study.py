"""The Optuna study of a sweep: who proposes, what is recorded, and how it is read back."""

import math
import warnings
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from mhimdist.config import TrainConfig
from mhimdist.errors import ConfigError, SweepError
from mhimdist.space import BaseValues, Space, SpaceFunction

STUDY_NAME = "sweep"

_PROBES = 64


class Proposals:
    """What Ray Tune asks for a trial's configuration: the trial's number and its changes of the base."""

    def __init__(self, space: SpaceFunction) -> None:
        self.space = space

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        """`{"number": ..., "changes": {dotted path: value}}`."""
        collected = Space(trial)
        self.space(collected)
        return {"number": trial.number, "changes": collected.changes}


class StudySearch(OptunaSearch):
    """Optuna under Ray Tune, with honest states: a trial that a scheduler stopped is pruned, not complete."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record how a trial ended; Ray itself would count a stopped one as complete."""
        stopped_early = result is not None and not error and not result.get("is_finished", False)
        if stopped_early and trial_id not in self._completed_trials:
            assert result is not None
            trial, recorded = self._ot_trials[trial_id], cast(optuna.Study, self._ot_study)
            # The result on which a scheduler stops a trial reaches only this method.
            reported = recorded.get_trials(deepcopy=False)[trial.number].intermediate_values
            if result["training_iteration"] not in reported:
                trial.report(result[self.metric], result["training_iteration"])
            recorded.tell(trial, state=TrialState.PRUNED)
            self._completed_trials.add(trial_id)
            return
        super().on_trial_complete(trial_id, result, error)


def storage_url(path: Path) -> str:
    """The URL by which Optuna and optuna-dashboard open the study's file."""
    return f"sqlite:///{path.resolve()}"


def search(
    space: SpaceFunction, first_trial: dict[str, Any], *, metric: str, seed: int, num_startup: int, path: Path
) -> StudySearch:
    """A searcher that proposes a given first trial and then by TPE.

    Args:
        space: what a trial changes of the base.
        first_trial: the parameters that `check` gave.
        metric: what is maximised.
        seed: of the sampler.
        num_startup: trials drawn at random before the sampler models them.
        path: the study's SQLite file.
    """
    # One model over all parameters that occur together, and distance to the trials still running.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=num_startup
        )
    return StudySearch(
        space=Proposals(space),
        metric=metric,
        mode="max",
        points_to_evaluate=[first_trial],
        sampler=sampler,
        study_name=STUDY_NAME,
        storage=optuna.storages.RDBStorage(storage_url(path)),
    )


def check(space: SpaceFunction, base: TrainConfig) -> dict[str, Any]:
    """Draw from a space before anything runs, so that an impossible one is refused at once.

    Returns:
        The parameters with which the space gives the base configuration: the first trial.

    Raises:
        SweepError: the space does not hold the base, or makes an invalid configuration.
    """
    values = BaseValues(base)
    space(Space(values))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(_PROBES):
        trial = probe.ask()
        changes = Proposals(space)(trial)["changes"]
        try:
            base.override(changes)
        except ConfigError as error:
            raise SweepError(f"the space makes an impossible configuration, {changes}: {error}") from None
    return values.params


def read(path: Path) -> list[FrozenTrial]:
    """The study's trials, by number."""
    return _load(path).trials


def _load(path: Path) -> optuna.Study:
    return optuna.load_study(study_name=STUDY_NAME, storage=storage_url(path))


def importances(path: Path) -> dict[str, float]:
    """The share of each parameter in what varies between complete trials, by fANOVA; empty if undefined.

    A parameter that only some trials have cannot be compared over all of them and is left out.
    """
    study = _load(path)
    complete = study.get_trials(states=[TrialState.COMPLETE])
    if len(complete) < 4 or len({trial.value for trial in complete}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: share for name, share in shares.items() if math.isfinite(share)}
