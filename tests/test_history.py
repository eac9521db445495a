"""What a history says of the end of a run."""

import pytest
import torch

from iadd_lab.distillation.history import ALL_RATES, RATES, History
from iadd_lab.errors import InputError


def test_settled_is_the_mean_of_the_end():
    history = History(loss=[9.0] * 18 + [1.0, 3.0], alpha=[0.5])
    assert history.settled("loss") == 2.0  # the last tenth of 20
    assert history.settled("loss", share=1.0) == pytest.approx((18 * 9 + 4) / 20)
    assert history.settled("alpha") == 0.5  # at least one


def test_back_offs_say_which_rate_was_halved_and_where(caplog):
    history = History(loss=[1.0, 2.0])
    assert history.back_off("alpha_rate", reason="It fell.", limit=2)
    assert history.back_off(ALL_RATES, reason="It rose.", limit=2)
    assert not history.back_off(ALL_RATES, reason="It rose.", limit=2)
    assert "It fell. Went back to iteration 2 and halved alpha_rate." in caplog.text
    assert history.back_off_iterations == [2, 2]
    assert [history.share_of(rate) for rate in RATES[:3]] == [0.5, 0.25, 0.5]
    assert History.from_tensors(history.tensors()) == history
    with pytest.raises(InputError, match="unknown series 'back_off_rates'"):
        history.settled("back_off_rates")
    with pytest.raises(InputError, match=r"unknown series 'los'.*did you mean 'loss'"):
        history.settled("los")


def test_what_is_taken_back_leaves_neither_values_nor_snapshots():
    series = {"loss": [3.0, 2.0, 1.0], "alpha": [0.1, 0.2, 0.3], "snapshot_iterations": [0, 2, 3]}
    history = History(**series, snapshot_images=[torch.full((1, 1, 2, 2), each) for each in (0.0, 2.0, 3.0)])
    assert history.back_off(ALL_RATES, reason="It rose.", limit=1)
    history.keep(2)
    assert (history.loss, history.alpha, history.snapshot_iterations) == ([3.0, 2.0], [0.1, 0.2], [0, 2])
    assert [images.max() for images in history.snapshot_images] == [0, 2]
    assert history.back_off_iterations == [3]  # that it happened stays
