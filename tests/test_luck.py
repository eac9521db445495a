"""Teachers trained again from their stored epochs: shares of luck by hand, and every draw repeatable."""

from dataclasses import replace

import pytest
import torch

from iadd_lab import plots
from iadd_lab.seeds import generator
from iadd_lab.study.luck import Repeat, luck_shares, repeat_segments, unmatched_shares
from iadd_lab.study.replay import ReplayedSegment
from iadd_lab.training.networks import ParameterLayout
from tests.samples import assert_refused

LAYOUT = ParameterLayout(("weight", "bias", "still"), ((3,), (1,), (1,)))
OPTIONS = {"start_epochs": 2, "epochs": 1, "compile": "never", "progress": False}


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_shares_of_luck_by_hand():
    one = Repeat(vector(0, 0, 0, 0, 1), vector(3, 0, 0, 1, 1), vector(1, 0, 0, 1, 1))
    shares = luck_shares([one], LAYOUT)
    # (3 − 1)² / 2 beside (3² + 1²) / 2; the bias ends in the same place twice; the last one never moves.
    assert shares == pytest.approx({"all": 2 / 6, "weight": 2 / 5, "bias": 0.0})


def test_shares_of_what_is_unmatched_by_hand():
    trajectory = torch.stack([vector(0, 0, 0, 0, 1), vector(2, 0, 0, 1, 1)])
    student = torch.stack([trajectory[0], vector(1, 1, 0, 1, 1)])
    one = ReplayedSegment(0, 0, 1, student, trajectory)
    found = unmatched_shares([one, one], LAYOUT)
    assert found == pytest.approx({"all": 2 / 5, "weight": 2 / 4, "bias": 0.0})


def test_luck_of_independent_draws_is_their_variance():
    """Ends drawn around a common way: the share estimated is variance over (variance + way²)."""
    random = torch.Generator().manual_seed(0)
    way, deviation, count = 2.0, 0.5, 4000
    ends = way + deviation * torch.randn(2, count, generator=random)
    layout = ParameterLayout(("weight",), ((count,),))
    found = luck_shares([Repeat(torch.zeros(count), *ends)], layout)["all"]
    assert found == pytest.approx(deviation**2 / (deviation**2 + way**2), rel=0.05)


def test_a_teacher_in_its_own_order_ends_where_it_ended(toy_data, toy_teachers, monkeypatch):
    """With the order of the teacher itself, training again is no different: nothing else is drawn."""
    own = generator(toy_teachers.config.seed, "teacher", 0, "order")
    monkeypatch.setattr("iadd_lab.study.luck.generator", lambda *stream: own)
    (first,) = repeat_segments(toy_teachers, toy_data, **OPTIONS | {"start_epochs": 1}, count=1)
    assert torch.equal(first.again, first.target)


def test_repeats_are_other_draws_and_the_same_every_time(toy_data, toy_teachers, tmp_path, monkeypatch):
    found = repeat_segments(toy_teachers, toy_data, **OPTIONS)
    assert len(found) == 2 * len(toy_teachers)
    assert not any(torch.equal(each.again, each.target) for each in found)
    assert 0 < luck_shares(found, toy_teachers.layout)["all"] < 1
    other = repeat_segments(toy_teachers, toy_data, **OPTIONS, seed=1)
    assert not torch.equal(other[0].again, found[0].again)
    repeat_segments(toy_teachers, toy_data, **OPTIONS, count=1, folder=tmp_path)
    monkeypatch.delattr("iadd_lab.training.teachers.Teachers.training")  # what is stored is not trained again
    read = repeat_segments(toy_teachers, toy_data, **OPTIONS, count=1, folder=tmp_path)
    assert all(torch.equal(a.again, b.again) for a, b in zip(found[:2], read, strict=True))
    with pytest.raises(AttributeError):  # the second teacher is not there
        repeat_segments(toy_teachers, toy_data, **OPTIONS, count=2, folder=tmp_path)


def test_bad_values_other_images_and_teachers_with_momentum_are_refused(toy_data, toy_teachers):
    bad = {"count": (0, 99), "epochs": (0, 99), "start_epochs": (0, 99)}
    for name, value in ((name, value) for name, values in bad.items() for value in values):
        sentence = f"^{name} is {value}; it must be a whole number of at least 1"
        assert_refused(sentence, repeat_segments, toy_teachers, toy_data, **OPTIONS | {name: value})
    other = replace(toy_data, fingerprint="of other images")
    assert_refused("were trained on .* but the data is", repeat_segments, toy_teachers, other, **OPTIONS)
    pushed = replace(toy_teachers, config=replace(toy_teachers.config, momentum=0.9))
    assert_refused("the teachers' momentum is 0.9", repeat_segments, pushed, toy_data, **OPTIONS)


def test_the_picture_shows_every_share_that_there_is(toy_teachers):
    first, *_, last = toy_teachers.layout.names
    shares = {"unmatched": {"all": 0.5, first: 0.25}, "luck": {"all": 0.01, last: 0.02}}
    (ax,) = plots.movement_shares(shares, toy_teachers.layout).axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([25, 0, 50, 0, 2, 1])
    assert ax.get_xticklabels()[-1].get_text() == "all\nparameters"
    empty = {"unmatched": {}}
    assert_refused("there is no share to show", plots.movement_shares, empty, toy_teachers.layout)
