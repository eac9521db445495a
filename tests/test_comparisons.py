"""Paired differences: the interval's arithmetic, what cancels in pairs, and the files."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from iadd_lab import plots
from iadd_lab.study import comparisons
from iadd_lab.study.comparisons import compare, difference_frame, measurement_frame, paired_differences
from iadd_lab.study.settings import Setting
from iadd_lab.study.tables import save_frame
from iadd_lab.training.networks import NetworkConfig
from tests.samples import assert_refused, make_cell

SETTING = Setting(data_name="digits", ipc=1, width=4, seeds=3, evaluation_networks=2)
NETWORK = NetworkConfig(width=4)


def cell(method, correct: list[int], setting=SETTING, network=NETWORK):
    """Networks that got so many of 100 images of one of two classes right, seed by seed."""
    return make_cell(method, [[[hits, 100 - hits], [0, 0]] for hits in correct], setting, network)


def test_differences_are_taken_seed_by_seed():
    luck = [10, 12, 50, 52, 80, 86]  # two networks of each of three seeds
    found = compare(cell("iadd", [hits + 2 for hits in luck]), cell("mtt", luck))
    assert found.each == pytest.approx((2.0, 2.0, 2.0))
    assert (found.difference, found.low95, found.high95) == pytest.approx((2.0, 2.0, 2.0))
    assert found.is_sure
    assert compare(cell("mtt", luck), cell("iadd", [hits + 2 for hits in luck])).is_sure  # that it is worse
    assert comparisons.seed_accuracies(cell("mtt", luck)).tolist() == pytest.approx([0.11, 0.51, 0.83])


def test_the_interval_is_that_of_a_paired_t_test():
    one, other = [55, 57, 61, 60, 52, 50], [50, 51, 60, 60, 50, 53]
    found = compare(cell("iadd", one), cell("mtt", other))
    means = [np.reshape(values, (3, 2)).mean(1) for values in (one, other)]
    interval = stats.ttest_rel(*means).confidence_interval(0.95)
    assert (found.low95, found.high95) == pytest.approx((interval.low, interval.high), rel=1e-5)
    assert found.is_sure == bool(stats.ttest_rel(*means).pvalue < 0.05)


@given(values=st.lists(st.floats(-50, 50), min_size=2, max_size=8), shift=st.floats(-10, 10))
def test_an_interval_moves_and_mirrors_with_its_values(values, shift):
    mean, low, high = comparisons.mean_with_interval(values)
    assert low <= mean + 1e-9
    assert mean <= high + 1e-9
    moved = comparisons.mean_with_interval([value + shift for value in values])
    assert moved == pytest.approx((mean + shift, low + shift, high + shift), abs=1e-6)
    mirrored = comparisons.mean_with_interval([-value for value in values])
    assert mirrored == pytest.approx((-mean, -high, -low), abs=1e-6)


def test_balanced_accuracies_are_compared_too():
    setting = replace(SETTING, seeds=2, evaluation_networks=1)
    cells = [make_cell("iadd", [[[9, 1], [3, 7]], [[8, 2], [2, 8]]], setting)]
    cells += [make_cell("mtt", [[[30, 0], [10, 0]], [[10, 20], [0, 10]]], setting)]
    (plain,), (balanced,) = (paired_differences(cells, balanced=choice) for choice in (False, True))
    assert plain.each == pytest.approx((100 * (16 / 20 - 30 / 40), 100 * (16 / 20 - 20 / 40)))
    assert balanced.each == pytest.approx((100 * (0.8 - 0.5), 100 * (0.8 - (1 / 3 + 1) / 2)))
    assert balanced.heading == f"{plain.heading}, balanced accuracy"
    assert difference_frame([plain, balanced])["measure"].tolist() == ["accuracy", "balanced accuracy"]
    frame = measurement_frame(cells[1:], profile="quick", balanced=True)
    assert frame["mean"].tolist() == pytest.approx([100 * (30 / 40 + 20 / 40) / 2, 100 * (0.5 + 2 / 3) / 2])
    assert frame["std"].tolist() == pytest.approx([100 * 0.25 / 2**0.5, 100 / 6 / 2**0.5])
    figure = plots.paired_intervals([plain, balanced])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["IADD", "IADD, balanced"]


def test_a_difference_says_where_it_was_measured():
    small = replace(SETTING, size=4)
    alexnet = NetworkConfig("alexnet")
    found = compare(*(cell(name, [c] * 6, small, alexnet) for name, c in (("iadd", 60), ("mtt", 50))))
    assert found.heading == "Digits (4 px), IPC 1, AlexNet: IADD − MTT"
    assert str(found).startswith(f"{found.heading}: +10.0 points")
    none = replace(found, difference=-0.01, low95=-0.04, high95=0.04)
    assert str(none).endswith(": +0.0 points (95 % interval +0.0 to +0.0, 3 seeds)")
    assert found.dataset == "digits_4px"


def test_one_seed_has_no_interval():
    setting = replace(SETTING, seeds=1)
    found = compare(cell("iadd", [60, 62], setting), cell("mtt", [50, 52], setting))
    assert found.difference == pytest.approx(10)
    assert math.isnan(found.low95 + found.high95)
    assert not found.is_sure
    assert str(found) == "Digits, IPC 1: IADD − MTT: +10.0 points (one seed, so no interval)"


def test_only_like_is_compared_with_like():
    same = cell("mtt", [60] * 6)
    chosen_on = replace(same.evaluation, config=replace(same.evaluation.config, split="validation"))
    others = {
        r"split \(test and validation\)": replace(same, evaluation=chosen_on),
        "setting": cell("mtt", [60] * 6, replace(SETTING, ipc=2)),
        "network": cell("mtt", [60] * 6, network=NetworkConfig("alexnet")),
        r"seeds \(3 and 1\)": cell("whole", [90] * 2),  # there is one, whatever the seeds
    }
    for what, other in others.items():
        assert_refused(f"the cells differ in their {what}", compare, cell("iadd", [60] * 6), other)


def test_pairs_are_made_where_both_were_measured(tmp_path):
    cells = [cell("iadd", [60] * 6), cell("mtt", [50] * 6), cell("random", [20] * 6)]
    other = replace(SETTING, ipc=10)
    cells += [cell("mtt", [70] * 6, other), cell("ddpp", [71] * 6, other)]
    found = paired_differences(cells)
    assert [(each.ipc, each.method_a, each.method_b, each.difference) for each in found] == [
        (1, "iadd", "mtt", pytest.approx(10)),
        (10, "ddpp", "mtt", pytest.approx(1)),
    ]
    (chosen,) = paired_differences(cells, pairs=[("random", "mtt"), ("herding", "mtt")])
    assert (chosen.method_a, chosen.difference) == ("random", pytest.approx(-30))
    save_frame(difference_frame(found), tmp_path, "paired_differences")
    read = pd.read_csv(tmp_path / "paired_differences.csv")
    columns = "dataset ipc network method_a method_b difference low95 high95 seeds measure"
    assert list(read) == columns.split()
    assert read.loc[0, ["method_a", "difference", "seeds"]].tolist() == ["iadd", pytest.approx(10), 3]
    assert save_frame(read, "", "nothing") is read


def test_measurements_name_their_source_and_keep_kinds_apart():
    frame = measurement_frame([cell("iadd", [60] * 6)], profile="quick", published_data=["cifar10"])
    assert list(frame)[:8] == ["dataset", "ipc", "network", "method", "mean", "std", "seeds", "source"]
    ours = frame.iloc[0]
    assert (ours["method"], ours["mean"], ours["seeds"]) == ("iadd", pytest.approx(60), 3)
    assert ours["source"] == "measured here: quick profile, 3 sets × 2 networks, width 4, test images"
    published = frame.iloc[1:]
    assert published["source"].str.startswith("published: ").all()
    assert published["seeds"].isna().all()
    assert set(published["ipc"].dropna()) == {1}
    both = measurement_frame([cell("iadd", [60] * 6)], profile="quick", balanced=True)
    assert both["measure"].tolist() == ["accuracy", "balanced accuracy"]  # one below the other


def test_intervals_are_drawn_with_every_seed():
    found = [compare(cell("iadd", [61, 60, 63, 62, 60, 60]), cell("mtt", [50] * 6))]
    (ax,) = plots.paired_intervals(found, title="pairs").axes
    dots, interval, mean = ax.lines[1:4]  # then those of the legend
    assert list(dots.get_xdata()) == list(found[0].each)
    assert list(interval.get_xdata()) == [found[0].low95, found[0].high95]
    assert list(mean.get_xdata()) == [found[0].difference]
    assert len(set(dots.get_ydata())) == 1
    assert dots.get_ydata()[0] < interval.get_ydata()[0]  # above it, so that none is hidden
    assert [label.get_text() for label in ax.get_yticklabels()] == ["IADD"]
    assert ax.get_xlabel() == "accuracy minus that of MTT (percentage points)"
    assert ax.figure.get_suptitle() == "Digits, IPC 1: pairs"
    assert_refused("no difference to show", plots.paired_intervals, [])


def test_what_differs_among_the_pairs_is_said_in_each_row():
    places = (NetworkConfig(), NetworkConfig("alexnet"))
    cells = [cell(name, [60] * 6, network=place) for place in places for name in ("iadd", "mtt", "ddpp")]
    (ax,) = plots.paired_intervals(paired_differences(cells), title="pairs").axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0] == "ConvNet: IADD − MTT"
    assert labels[2:5] == ["ConvNet: DDPP − MTT", "AlexNet: IADD − MTT", "AlexNet: IADD − DDPP"]
    assert ax.get_xlabel() == "difference of accuracies (percentage points)"
    assert ax.figure.get_suptitle() == "Digits, IPC 1: pairs"
    settings = (SETTING, replace(SETTING, ipc=2))
    cells = [cell(name, [60] * 6, setting, places[1]) for setting in settings for name in ("iadd", "mtt")]
    (ax,) = plots.paired_intervals(paired_differences(cells)).axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["Digits, IPC 1, AlexNet: IADD", "Digits, IPC 2, AlexNet: IADD"]
