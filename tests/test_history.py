"""What a history says of the end of a run."""

import pytest

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
