"""Validation: what student and teacher predict of the bags that select, after each epoch."""

from collections.abc import Sequence

from mhimdist.data.bags import BagSource
from mhimdist.errors import SplitError
from mhimdist.method.teacher import Teacher
from mhimdist.models import BagModel
from mhimdist.training.evaluation import Predictions, Sampling, predict
from mhimdist.training.history import EpochRecord
from mhimdist.training.workers import Workers


class Validation:
    """The validation of one run."""

    def __init__(
        self, bags: BagSource, keys: Sequence[str], workers: Workers, sampling: Sampling | None
    ) -> None:
        """Take the bags; nothing is read yet.

        Args:
            bags: the data set.
            keys: keys of the bags that validate; empty if other runs have chosen the number of epochs.
            workers: the processes of the run; each predicts its share.
            sampling: as in `evaluation.predict`.
        """
        self._bags, self._keys, self._workers, self._sampling = bags, keys, workers, sampling

    def of_student(self, student: BagModel) -> Predictions | None:
        """The student's predictions; None without bags. All workers must call this.

        Raises:
            SplitError: the score that selects is undefined for them.
        """
        if not self._keys:
            return None
        found = self._predict(student)
        if found.score is None:
            raise SplitError(
                f"the validation set: {student.task.title} is undefined for its {len(found.keys)} bags, so "
                "no epoch can be selected; give another split"
            )
        return found

    def of_teacher(
        self, teacher: Teacher | None, student_score: float | None, history: Sequence[EpochRecord]
    ) -> float | None:
        """The teacher's score; it is computed only if it can differ from a known one.

        Args:
            teacher: the teacher, if there is one.
            student_score: the student's score after the same epoch; None without bags.
            history: the records of the epochs before.
        """
        if teacher is None or student_score is None:
            return None
        if not teacher.is_own_network:
            return student_score
        if not teacher.settings.has_momentum and history:
            return history[-1].teacher_validation_score
        return self._predict(teacher.network).score

    def _predict(self, network: BagModel) -> Predictions:
        mine = self._keys[self._workers.rank :: self._workers.world_size]
        parts = self._workers.gather(predict(network, self._bags, mine, self._sampling) if mine else None)
        return Predictions.merge([part for part in parts if part is not None], self._keys)
