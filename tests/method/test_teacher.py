import pytest
import torch

from mhimdist.config.method import Teacher as Settings
from mhimdist.config.models import AttentionMIL
from mhimdist.data.bags import PackedBags
from mhimdist.method.teacher import Teacher
from mhimdist.models import build
from mhimdist.ops.draws import Draws

pytestmark = pytest.mark.numeric
MODEL = AttentionMIL(hidden_dim=8, attention_dim=4)


def _network(seed: int):
    return build(MODEL, num_features=5, num_classes=2, seed=seed)


def _weights(network):
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


def _bag():
    return PackedBags.from_list([torch.randn(9, 5, generator=torch.Generator().manual_seed(0))])


@pytest.mark.parametrize(
    ("kind", "starts_as", "moves"),
    [
        ("init", "pretrained", False),
        ("momentum", "student", True),
        ("init_momentum", "pretrained", True),
    ],
)
def test_kinds_of_table_5(kind, starts_as, moves):
    student, pretrained = _network(1), _network(2)
    teacher = Teacher(Settings(kind=kind, momentum={"start": 0.9}), student, pretrained)
    start = _weights({"student": student, "pretrained": pretrained}[starts_as])
    assert torch.equal(_weights(teacher.network), start)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    teacher.follow(student, 0.1)
    expected = 0.9 * start + 0.1 * _weights(student) if moves else start
    torch.testing.assert_close(_weights(teacher.network), expected)


def test_a_student_copy_is_the_student_itself():
    student = _network(1)
    teacher = Teacher(Settings(kind="student_copy"), student, None)
    assert teacher.network is student
    assert not teacher.is_own_network
    assert all(p.requires_grad for p in student.parameters())


def test_a_step_of_several_bags_moves_as_far_as_as_many_steps():
    student = _network(1)
    teachers = [Teacher(Settings(kind="init_momentum", momentum={"start": 0.9}), student, _network(2))] * 1
    teachers.append(Teacher(teachers[0].settings, student, _network(2)))
    teachers[0].follow(student, 1 - teachers[0].momentum(progress=0.0, num_bags=3))
    for _ in range(3):
        teachers[1].follow(student, 1 - teachers[1].momentum(progress=0.0, num_bags=1))
    torch.testing.assert_close(_weights(teachers[0].network), _weights(teachers[1].network))


def test_momentum_follows_its_schedule():
    teacher = Teacher(Settings(kind="momentum", momentum={"start": 0.9, "kind": "cosine"}), _network(1), None)
    momenta = [teacher.momentum(progress=progress, num_bags=1) for progress in (0.0, 0.5, 1.0)]
    assert momenta == pytest.approx([0.9, 0.95, 1.0])


def test_dropout_only_where_asked_for():
    student, bag = _network(1), _bag()
    quiet, noisy = (
        Teacher(Settings(kind="momentum", dropout=dropout), student, None) for dropout in (False, True)
    )
    with torch.no_grad():
        clean = student(bag).embeddings_BME
    keys = [Draws(0, epoch).keys(bag.ids_B, "teacher_dropout") for epoch in (0, 1)]
    assert torch.equal(quiet.score(bag, keys[0]).embeddings_BME, clean)
    first, second = (noisy.score(bag, keys_B).embeddings_BME for keys_B in keys)
    assert not torch.equal(first, clean)
    assert not torch.equal(first, second)
