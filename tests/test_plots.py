"""Pictures: the right pixels and numbers in the right places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from iadd_lab import plots
from iadd_lab.distill import DistillConfig, distill
from iadd_lab.evaluate import EvaluateConfig, Evaluation
from tests.conftest import AUGMENT


@pytest.fixture(scope="module")
def result(toy_data, toy_teachers):
    config = DistillConfig(
        ipc=2,
        iterations=4,
        student_steps=2,
        teacher_epochs=1,
        max_start_epoch=2,
        snapshots=3,
        augment=AUGMENT,
    )
    return distill(toy_data, toy_teachers, config, progress=False)


@pytest.fixture
def evaluations():
    config = EvaluateConfig(networks=2)
    good = torch.tensor([[[9, 1], [1, 9]], [[8, 2], [0, 10]]])
    poor = torch.tensor([[[5, 5], [5, 5]], [[6, 4], [6, 4]]])
    classes = ("zero", "one")
    return [Evaluation(good, classes, "learned", config), Evaluation(poor, classes, "random real", config)]


def shown(axes):
    """The pixels of each picture drawn, in order."""
    return [np.asarray(ax.images[0].get_array()) for ax in axes if ax.images]


def test_a_grid_has_a_column_per_class(result):
    made = result.distilled
    figure = plots.image_grid(made.pictures(), made.labels, made.classes, title="all")
    axes = figure.axes
    assert [ax.get_title() for ax in axes] == ["0", "1", "", ""]
    order = [0, 2, 1, 3]  # row by row: the first of each class, then the second
    for pixels, row in zip(shown(axes), order, strict=True):
        assert np.array_equal(pixels, made.pictures()[row, 0].numpy())


def test_many_classes_take_several_bands():
    pictures = torch.rand(23, 3, 4, 4)
    names = [f"a very long class name {n}" for n in range(23)]
    figure = plots.image_grid(pictures, torch.arange(23), names)
    assert len(figure.axes) == 30
    assert len(shown(figure.axes)) == 23
    assert figure.axes[22].get_title() == "a very long…"
    assert np.array_equal(shown(figure.axes)[22], pictures[22].permute(1, 2, 0).numpy())


def test_before_and_after_show_the_first_of_each_class(result):
    figure = plots.before_after(result)
    pixels = shown(figure.axes)
    start = result.distilled.pictures(result.history.snapshot_images[0])
    for found, expected in zip(
        pixels, [start[0], start[2], *result.distilled.pictures()[[0, 2]]], strict=True
    ):
        assert np.array_equal(found, expected[0].numpy())


def test_history_shows_every_iteration(result):
    loss, alpha, share = plots.history_plot(result.history).axes
    history = result.history
    assert np.array_equal(loss.lines[0].get_ydata(), history.loss)
    assert np.array_equal(loss.lines[1].get_ydata(), history.unweighted_loss)
    assert np.array_equal(alpha.lines[0].get_ydata(), history.alpha)
    assert np.array_equal(share.lines[0].get_ydata(), history.importance_share)


def test_a_long_history_gets_its_running_mean(result):
    loss = [float(n) for n in range(100)]
    history = type(result.history)(
        loss=loss, unweighted_loss=loss, alpha=[0.1] * 100, importance_share=[1.0] * 100
    )
    raw, mean = plots.history_plot(history).axes[0].lines  # once: with and without W it is the same
    assert len(raw.get_xdata()) == 100
    assert mean.get_xdata()[0] == 5
    assert mean.get_ydata()[0] == pytest.approx(2.0)


def test_importance_by_layer_has_a_box_per_tensor(toy_teachers):
    layout = toy_teachers.layout
    importance = torch.arange(layout.count) / layout.count
    ax = plots.importance_by_layer(importance, layout).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(layout.names)
    medians = [
        line.get_xdata()[0] for line in ax.lines if line.get_color() == "black" and len(line.get_xdata()) == 2
    ]
    expected = [values.median().item() for values in importance.split(list(layout.sizes))]
    for value in expected[:2]:
        assert any(abs(value - median) < 2 / layout.count for median in medians)


def test_bars_stand_at_the_mean_accuracy(evaluations):
    ax = plots.accuracy_bars(evaluations).axes[0]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([90.0, 50.0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["learned", "random real"]
    assert ax.get_ylabel() == "test accuracy (%)"


def test_confusion_is_in_per_cent_of_the_true_class(evaluations):
    ax = plots.confusion_matrix(evaluations[0]).axes[0]
    assert [text.get_text() for text in ax.texts] == ["85", "15", "5", "95"]


def test_overview_has_pictures_and_bars(result, evaluations):
    figure = plots.overview(result, evaluations)
    assert len(shown(figure.axes)) == 4
    assert len(figure.axes[-1].patches) == 2


def test_live_plot_redraws_one_output(result, toy_teachers, monkeypatch):
    drawn = []

    class Handle:
        def update(self, figure):
            drawn.append(("update", figure))

    def display(figure, *, display_id):
        drawn.append(("display", figure))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    live = plots.LivePlot(toy_teachers.preprocess, every=2)
    for iteration in range(1, 7):
        live(iteration, result.history)
    assert [kind for kind, _ in drawn] == ["display", "update", "update"]
    assert all(isinstance(figure, Figure) for _, figure in drawn)


def test_saving_writes_both_formats_or_nothing(tmp_path, evaluations):
    figure = plots.accuracy_bars(evaluations)
    assert plots.save_figure(figure, tmp_path / "new", "bars") is figure
    assert (tmp_path / "new" / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "bars.pdf").read_bytes().startswith(b"%PDF")
    assert plots.save_figure(figure, "", "bars") is figure
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_notebooks_see_a_png(evaluations):
    assert plots.accuracy_bars(evaluations)._repr_png_().startswith(b"\x89PNG")
