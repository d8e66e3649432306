import dataclasses

import pytest

from mhimdist.errors import CheckpointError
from mhimdist.training.history import EpochRecord
from mhimdist.training.mask_telemetry import NAMES


def _row(**changes):
    return {field.name: 0 for field in dataclasses.fields(EpochRecord)} | changes


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = EpochRecord.read(_row(epoch=3, loss=0.5), tmp_path)
    assert dataclasses.asdict(record) == _row(epoch=3, loss=0.5)


def test_a_record_of_a_release_that_called_every_score_an_auc_is_read(tmp_path):
    row = _row(student_validation_score=0.7, teacher_validation_score=0.8, best_validation_score=0.9)
    old = {name.replace("validation_score", "validation_auc"): value for name, value in row.items()}
    assert dataclasses.asdict(EpochRecord.read(old, tmp_path)) == row


def test_a_record_with_other_fields_is_refused_by_their_names(tmp_path):
    row = _row(speed=1)
    del row["loss"]
    with pytest.raises(CheckpointError, match=r"its records differ from this release's in loss, speed;"):
        EpochRecord.read(row, tmp_path)


def test_the_rank_is_the_auc_and_then_the_lower_loss(tmp_path):
    results = [(0.9, 0.1), (0.8, 0.3), (0.8, 0.5)]
    ranks = [
        EpochRecord.read(_row(student_validation_score=auc, student_validation_loss=loss), tmp_path).rank
        for auc, loss in results
    ]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == 3


def test_a_record_written_before_masks_were_measured_is_read(tmp_path):
    row = _row(loss=0.5)
    for name in NAMES:
        del row[name]
    record = EpochRecord.read(row, tmp_path)
    assert record.loss == 0.5
    assert [getattr(record, name) for name in NAMES] == [None] * 7
