"""Pictures: the right pixels and numbers in the right places."""

from __future__ import annotations

import re
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from iadd_lab import plots
from iadd_lab.distill import DistillConfig, distill
from iadd_lab.errors import InputError
from iadd_lab.evaluate import EvaluateConfig, Evaluation
from iadd_lab.history import History
from iadd_lab.matching import Learned, Uniform
from iadd_lab.networks import NetworkConfig, ParameterLayout, build_network
from iadd_lab.paths import SegmentPath, hardness, one_iteration, replay
from iadd_lab.plots.images import tile
from iadd_lab.plots.layers import layers_of, tensor_titles
from tests.conftest import AUGMENT

CONFIG = DistillConfig(
    ipc=2,
    iterations=4,
    student_steps=3,
    teacher_epochs=1,
    max_start_epoch=3,
    alpha=0.05,
    matching=Learned(rate=0.05),
    snapshots=3,
    augment=AUGMENT,
)


@pytest.fixture(scope="module")
def result(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, CONFIG, progress=False)


@pytest.fixture(scope="module")
def uniform(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, replace(CONFIG, matching=Uniform()), progress=False)


@pytest.fixture(scope="module")
def paths(result, toy_teachers):
    return replay(result, toy_teachers, segments=6)


@pytest.fixture(scope="module")
def uniform_paths(uniform, toy_teachers):
    return replay(uniform, toy_teachers, segments=6)


@pytest.fixture(scope="module")
def iteration(result, toy_teachers):
    return one_iteration(result, toy_teachers, real_images=54321)


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


def cell(sheet, row, column, side, gap=1):
    """The pixels of one picture of a sheet, (side, side, 3)."""
    top, left = row * (side + gap), column * (side + gap)
    return sheet[top : top + side, left : left + side]


def upright(picture):
    """A picture (channels, height, width) as matplotlib has it, (height, width, 3)."""
    return np.broadcast_to(picture.permute(1, 2, 0).numpy(), (*picture.shape[1:], 3))


def sorted_pairs(*columns):
    """Rows of numbers in an order that does not depend on how they were drawn."""
    rows = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    return rows[np.lexsort(rows.T[::-1])]


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


# Grids


def test_a_grid_has_a_column_per_class(result):
    made = result.distilled
    ax = plots.image_grid(made.pictures(), made.labels, made.classes, title="all").axes[0]
    (sheet,) = shown([ax])
    assert sheet.shape == (17, 17, 3)
    for index, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        assert np.array_equal(cell(sheet, row, column, 8), upright(made.pictures()[index]))
    assert (sheet[8] == 1).all()
    assert (sheet[:, 8] == 1).all()


def test_class_names_stand_above_the_middle_of_their_columns(result):
    made = result.distilled
    ax = plots.image_grid(made.pictures(), made.labels, ("zero", "a very long name")).axes[0]
    assert [text.get_text() for text in ax.texts] == ["zero", "a very long…"]
    assert [text.get_position()[0] for text in ax.texts] == [3.5, 12.5]
    assert ax.yaxis_inverted()
    for text in ax.texts:
        assert text.get_position()[1] < -0.5
        assert (text.get_ha(), text.get_va()) == ("center", "bottom")


def test_many_classes_take_several_bands():
    pictures = torch.rand(23, 3, 4, 4)
    names = [f"class {n}" for n in range(23)]
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    axes = plots.image_grid(pictures[order], order, names).axes
    assert [[text.get_text() for text in ax.texts] for ax in axes] == [names[:10], names[10:20], names[20:]]
    sheets = shown(axes)
    assert {sheet.shape for sheet in sheets} == {(4, 49, 3)}
    for label in range(23):
        assert np.array_equal(cell(sheets[label // 10], 0, label % 10, 4), upright(pictures[label]))
    assert (sheets[2][:, 14:] == 1).all()


def test_a_missing_image_is_white():
    pictures = torch.rand(3, 1, 6, 6) / 2
    sheet = tile(pictures, torch.tensor([1, 0, 1]), columns=3, depth=2)
    assert sheet.shape == (13, 20, 3)
    for row, column, index in ((0, 0, 1), (0, 1, 0), (1, 1, 2)):
        assert np.array_equal(cell(sheet, row, column, 6), upright(pictures[index]))
        cell(sheet, row, column, 6)[:] = 1
    assert (sheet == 1).all()


@pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.long), torch.zeros(4, 1, dtype=torch.long)])
def test_every_picture_needs_a_label(labels):
    with pytest.raises(
        InputError, match=r"labels .*expected \(count, channels, height, width\) and \(count,\)"
    ):
        plots.image_grid(torch.rand(4, 3, 8, 8), labels, ("a",))


def test_a_large_grid_is_saved_at_once(tmp_path):
    pictures, labels = torch.rand(500, 3, 32, 32), torch.arange(10).repeat_interleave(50)
    names = [f"class {n}" for n in range(10)]

    def seconds():
        started = time.process_time()
        plots.save_figure(plots.image_grid(pictures, labels, names), tmp_path, "grid")
        return time.process_time() - started

    assert any(seconds() < 3 for _ in range(3))  # a busy machine may need a second try
    (sheet,) = shown(plots.image_grid(pictures, labels, names).axes)
    assert np.array_equal(cell(sheet, 49, 9, 32, gap=3), upright(pictures[-1]))


# Real and distilled images


@pytest.fixture(scope="module")
def real():
    """Two images of bytes for each of twelve classes."""
    images = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(24) % 12


def with_set(result, images, labels, names):
    return replace(result, distilled=replace(result.distilled, images=images, labels=labels, classes=names))


def test_few_classes_get_a_row_each(result, real):
    images, labels = real[0], torch.tensor([1, 0, 1] + 21 * [2])
    figure = plots.real_and_distilled(result, images, labels)
    assert [ax.get_title() for ax in figure.axes] == ["real", "distilled"]
    assert texts(figure) == ["0", "1"]
    found, made = shown(figure.axes)
    assert found.shape == made.shape == (17, 17, 3)
    for row, column, index in ((1, 0, 0), (0, 0, 1), (1, 1, 2)):
        assert np.array_equal(cell(found, row, column, 8), upright(images[index].float() / 255))
    assert (cell(found, 0, 1, 8) == 1).all()  # there is only one zero
    for index, place in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert np.array_equal(cell(made, *place, 8), upright(result.distilled.pictures()[index]))
    heights = [text.get_position()[1] for text in figure.axes[0].texts]
    assert heights == [3.5, 12.5]


def test_many_classes_get_a_column_each(result, real):
    images, labels = real
    names = tuple(f"class {n}" for n in range(12))
    twelve = with_set(result, torch.randn(24, 1, 8, 8), torch.arange(12).repeat_interleave(2), names)
    figure = plots.real_and_distilled(twelve, images[:-5], labels[:-5])
    found, made = shown(figure.axes)
    assert found.shape == made.shape == (17, 89, 3)
    pictures = twelve.distilled.pictures()
    for label in range(10):
        for row in range(2):
            assert np.array_equal(cell(made, row, label, 8), upright(pictures[2 * label + row]))
            expected = upright(images[label + 12 * row].float() / 255) if label + 12 * row < 19 else 1
            assert (cell(found, row, label, 8) == expected).all()
    assert texts(figure) == [*names[:10], "real", "distilled"]


def test_at_most_ten_of_a_class_are_shown(result, real):
    images, labels = real[0], torch.arange(24) // 12
    many = with_set(result, torch.randn(24, 1, 8, 8), labels, ("a", "b"))
    for sheet, pictures in zip(
        shown(plots.real_and_distilled(many, images.float() / 255, labels).axes),
        (images.float() / 255, many.distilled.pictures()),
        strict=True,
    ):
        assert sheet.shape == (17, 89, 3)
        assert np.array_equal(cell(sheet, 1, 9, 8), upright(pictures[21]))


def test_real_images_need_labels(result, real):
    with pytest.raises(InputError, match="labels"):
        plots.real_and_distilled(result, real[0], real[1][:-1])


def test_before_and_after_show_the_first_of_each_class(result):
    figure = plots.before_after(result)
    pixels = shown(figure.axes)
    start = result.distilled.pictures(result.history.snapshot_images[0])
    for found, expected in zip(
        pixels, [start[0], start[2], *result.distilled.pictures()[[0, 2]]], strict=True
    ):
        assert np.array_equal(found, expected[0].numpy())


# Differences of parameters


def test_dots_are_the_first_segments_differences(paths, uniform_paths, toy_teachers):
    layout = toy_teachers.layout
    methods = {"IADD": paths, "MTT": uniform_paths}
    figure = plots.parameter_difference(methods, layout)
    axes = np.array(figure.axes).reshape(2, -1)
    assert axes.shape[1] == 5
    for row, (name, own) in zip(axes, methods.items(), strict=True):
        assert row[0].get_ylabel().startswith(name)
        drawn = [np.asarray(ax.collections[0].get_offsets()) for ax in row]
        for dots in drawn:
            assert np.array_equal(dots[:, 0], np.arange(len(dots)))
        # Convolution, norm, convolution, norm, linear: the order of the flat vector.
        assert np.array_equal(np.concatenate(drawn)[:, 1], own[0].difference.numpy())


def test_titles_are_root_mean_squares(paths, uniform_paths, toy_teachers):
    methods = (paths, uniform_paths)
    figure = plots.parameter_difference({"IADD": paths, "MTT": uniform_paths}, toy_teachers.layout)
    axes = iter(figure.axes)
    for own in methods:
        for name, first, last in layer_bounds(toy_teachers.layout):
            difference = np.stack([(p.student[-1] - p.trajectory[p.target_epoch])[first:last] for p in own])
            movement = np.stack(
                [(p.trajectory[p.start_epoch + 1] - p.trajectory[p.start_epoch])[first:last] for p in own]
            )
            size, moved = (np.sqrt(np.mean(v.astype(np.float64) ** 2)) for v in (difference, movement))
            assert next(axes).get_title() == f"{name}\n{size:.1e} · {100 * size / moved:.0f} %"


def layer_bounds(layout):
    """Name, first and last + 1 index of each layer of the toy ConvNet, a weight and a bias each."""
    names = ("conv 1", "norm 1", "conv 2", "norm 2", "linear")
    bounds = np.concatenate([[0], np.cumsum(layout.sizes)])[::2]
    return list(zip(names, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def test_methods_share_a_columns_scale(paths, uniform_paths, toy_teachers):
    far = [replace(path, student=path.trajectory[path.target_epoch] + 5 + path.student) for path in paths]
    figure = plots.parameter_difference({"far": far, "MTT": uniform_paths}, toy_teachers.layout)
    upper, lower = np.array(figure.axes).reshape(2, -1)
    for above, below, (_, first, last) in zip(upper, lower, layer_bounds(toy_teachers.layout), strict=True):
        assert above.get_ylim() == below.get_ylim()
        low, high = above.get_ylim()
        largest = max(p[0].difference[first:last].abs().max().item() for p in (far, uniform_paths))
        assert low == -high
        assert 0.9 * largest < high < 1.2 * largest
    assert len({ax.get_ylim() for ax in upper}) == 5


def test_the_line_is_a_running_root_mean_square():
    layout = ParameterLayout(("features.0.weight",), ((160, 1, 1, 1),))
    target = torch.zeros(2, 160)
    path = SegmentPath(0, 0, 1, torch.full((2, 160), 3.0), target)
    other = SegmentPath(0, 0, 1, torch.full((2, 160), 4.0), target)
    ax = plots.parameter_difference({"any": [path, other]}, layout).axes[0]
    upper, lower = ax.lines
    assert upper.get_ydata() == pytest.approx(np.full(160, np.sqrt(12.5)))  # at the ends as well
    assert lower.get_ydata() == pytest.approx(np.full(160, -np.sqrt(12.5)))


def test_a_method_needs_paths(paths, toy_teachers):
    with pytest.raises(InputError, match="MTT has no paths"):
        plots.parameter_difference({"IADD": paths, "MTT": []}, toy_teachers.layout)


# The concept


def test_every_parameter_is_a_dot_beside_the_teachers(paths, result):
    importance = torch.linspace(0.5, 2, len(result.importance))
    figure = plots.concept(paths, importance)
    pairs, path = figure.axes[1], paths[0]
    start = path.trajectory[path.start_epoch]
    moved = 1000 * (path.trajectory[path.start_epoch + 1] - start)
    came = 1000 * (path.student[-1] - start)
    (dots,) = pairs.collections
    offsets = np.asarray(dots.get_offsets())
    found = sorted_pairs(offsets[:, 0], offsets[:, 1], np.asarray(dots.get_array()))
    assert found == pytest.approx(sorted_pairs(moved, came, importance), rel=1e-5, abs=1e-6)
    assert pairs.get_xlim() == pairs.get_ylim()


def test_every_path_is_a_line_and_every_teacher_too(paths, result):
    plane = plots.concept(paths, result.importance).axes[0]
    solid = [line for line in plane.lines if line.get_linestyle() == "-"]
    students = [line for line in solid if line.get_marker() == "None"]
    teachers = [line for line in solid if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in students] == [CONFIG.student_steps + 1] * len(paths)
    assert len(teachers) == len({path.teacher for path in paths}) == 2
    # A student starts on its teacher, and its dotted line ends there again.
    dotted = [line for line in plane.lines if line.get_linestyle() == ":"]
    by_name = dict(zip(dict.fromkeys(path.teacher for path in paths), teachers, strict=True))
    for path, student, gap in zip(paths, students, dotted, strict=True):
        teacher = by_name[path.teacher].get_xydata()
        assert student.get_xydata()[0] == pytest.approx(teacher[path.start_epoch], abs=1e-5)
        assert gap.get_xydata()[0] == pytest.approx(student.get_xydata()[-1], abs=1e-5)
        assert gap.get_xydata()[1] == pytest.approx(teacher[path.target_epoch], abs=1e-5)


def test_a_concept_needs_paths(result):
    with pytest.raises(InputError, match="no paths"):
        plots.concept([], result.importance)


# One iteration


def test_the_diagram_carries_its_iterations_numbers(iteration):
    numbers = replace(
        iteration,
        teacher=6,
        start_epoch=11,
        target_epoch=14,
        teachers=9,
        student_steps=37,
        augmentations=("crop", "cutout", "crop"),
        alpha=0.01234,
        loss=0.234,
        unweighted_loss=0.567,
        image_gradient=3.1,
        alpha_gradient=-4.2,
        importance_gradient=5.3,
        start_distance=6.78,
        end_distance=7.89,
    )
    figure = plots.iteration_diagram(numbers)
    written = "\n".join(texts(figure))
    start, target, end = r"$\theta_i$", r"$\theta_{i+K}$", r"$\tilde{\theta}_{i,J}$"
    weights = iteration.importance
    for expected in (
        "54,321 images\n1 × 8 × 8",
        "teacher 7 of 9\nepoch 11\n",
        "K = 3 epochs",
        "teacher, epoch 14\n",
        f"{len(weights):,} parameters",
        "distilled set\n4 × 1 × 8 × 8",
        "J = 37 steps",
        "α = 0.01234\nA: crop, cutout",
        f"W: {weights.min():.2f} … {weights.max():.2f}",
        "L = 0.234\n",
        "without W: 0.567\n",
        f"‖{start} − {target}‖ = 6.78\n",
        f"‖{end} − {target}‖ = 7.89",
        "‖∂L/∂D‖ = 3.1",
        "∂L/∂α = -4.2",
        "‖∂L/∂W‖\n5.3",
    ):
        assert expected in written
    thumbnails, histogram = figure.axes[0].child_axes
    assert sum(bar.get_height() for bar in histogram.patches) == len(weights)
    (sheet,) = shown([thumbnails])
    for index, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert np.array_equal(cell(sheet, row, column, 8), upright(iteration.pictures[index]))


# The importance weights


def test_importance_by_layer_has_a_box_per_tensor(toy_teachers):
    layout = toy_teachers.layout
    importance = torch.arange(layout.count) / layout.count
    ax = plots.importance_by_layer(importance, layout).axes[0]
    layers = ("conv 1", "norm 1", "conv 2", "norm 2", "linear")
    titles = [f"{layer} {kind}" for layer in layers for kind in ("weight", "bias")]
    assert [label.get_text() for label in ax.get_yticklabels()] == titles
    # Two whiskers, two caps and a median each; the dashed line comes last.
    medians = [line.get_xdata()[0] for line in ax.lines[4:-1:5]]
    assert medians == pytest.approx(
        [v.double().quantile(0.5).item() for v in importance.split(list(layout.sizes))]
    )


def test_learned_weights_over_layers_and_iterations(result, toy_teachers):
    layout = toy_teachers.layout
    layers, course, *_ = plots.learned_weights(result, layout, torch.rand(layout.count)).axes
    assert len(layers.get_yticklabels()) == len(layout.names)
    medians, kept = course.lines[:5], result.history.snapshot_importance
    assert [line.get_label() for line in medians] == [name for name, _, _ in layer_bounds(layout)]
    for line, (_, first, last) in zip(medians, layer_bounds(layout), strict=True):
        assert list(line.get_xdata()) == [0, 2, 4]
        expected = [w[first:last].sort().values[(last - first - 1) // 2].item() for w in kept]
        assert line.get_ydata() == pytest.approx(expected)


def test_the_rank_correlation_is_scipys(result, toy_teachers):
    hard, relative = torch.rand(2, toy_teachers.layout.count, generator=torch.Generator().manual_seed(0))
    hard += 0.3 * result.importance.argsort().argsort() / len(hard)
    relative[::7] = 0.0  # never move
    figure = plots.learned_weights(result, toy_teachers.layout, hard, relative_hardness=relative)
    plain, other = figure.axes[2:]
    weights = result.importance.numpy()
    assert abs(spearmanr(hard, weights).statistic) > 0.05
    assert plain.get_title() == f"rank correlation {spearmanr(hard, weights).statistic:+.2f}"
    moving = relative.numpy() > 0
    found = re.fullmatch(r"rank correlation ([+-]\d\.\d\d); (\d+) never move", other.get_title())
    expected = spearmanr(relative.numpy()[moving], weights[moving]).statistic
    assert found[1] == f"{expected:+.2f}"
    assert int(found[2]) == (~moving).sum()
    assert plain.get_xlabel() == "how hard to match"
    assert other.get_xlabel() == "relative to the teacher's movement"


def test_only_learned_weights_can_be_shown(result, uniform, toy_teachers):
    layout = toy_teachers.layout
    good, wrong = torch.rand(layout.count), torch.rand(layout.count - 1)
    with pytest.raises(InputError, match="uniform matching has no W"):
        plots.learned_weights(uniform, layout, good)
    with pytest.raises(InputError, match=rf"how hard.*\({layout.count - 1},\).*\({layout.count},\)"):
        plots.learned_weights(result, layout, wrong)
    with pytest.raises(InputError, match="relative to the teacher's movement has shape"):
        plots.learned_weights(result, layout, good, relative_hardness=wrong)


# Histories


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


@pytest.fixture
def curves():
    weighted = History([0.9, 0.7, 0.6], [0.95, 0.8, 0.7], [0.1, 0.2, 0.3], [2.0, 3.0, 4.0])
    plain = History([0.8, 0.5, 0.4], [0.8, 0.5, 0.4], [0.1, 0.15, 0.18], [1.0, 1.0, 1.0])
    return {
        "IADD": plots.Curve(weighted, [0, 1, 3], torch.tensor([[0.2, 0.4], [0.5, 0.7], [0.8, 0.9]])),
        "MTT": plots.Curve(plain, [0, 3], torch.tensor([[0.3], [0.6]])),
    }


def test_convergence_shows_every_run(curves):
    loss, alpha, accuracy, clock = plots.convergence(curves).axes
    unweighted, dashed, plain, key = loss.lines
    assert list(unweighted.get_xdata()) == [1, 2, 3]
    assert list(unweighted.get_ydata()) == [0.95, 0.8, 0.7]
    assert list(dashed.get_ydata()) == [0.9, 0.7, 0.6]
    assert list(plain.get_ydata()) == [0.8, 0.5, 0.4]
    assert [line.get_linestyle() for line in (unweighted, dashed, plain, key)] == ["-", "--", "-", "--"]
    assert unweighted.get_color() == dashed.get_color() != plain.get_color()
    assert [text.get_text() for text in loss.get_legend().texts] == ["IADD", "MTT", "weighted by W"]
    assert [list(line.get_ydata()) for line in alpha.lines] == [[0.1, 0.2, 0.3], [0.1, 0.15, 0.18]]
    for ax, places in ((accuracy, ([0, 1, 3], [0, 3])), (clock, ([0, 2, 9], [0, 3]))):
        assert [list(line.get_xdata()) for line in ax.lines] == list(places)
        assert ax.lines[0].get_ydata() == pytest.approx([30, 60, 85])
        assert ax.lines[1].get_ydata() == pytest.approx([30, 60])


def test_the_band_is_a_standard_deviation(curves):
    band, none = plots.convergence(curves).axes[2].collections
    heights = band.get_paths()[0].vertices[:, 1]
    deviation = 100 * np.std([0.8, 0.9], ddof=1)
    assert heights.max() == pytest.approx(85 + deviation)
    assert heights.min() == pytest.approx(30 - 100 * np.std([0.2, 0.4], ddof=1))
    assert set(none.get_paths()[0].vertices[:, 1].round(4)) == {30.0, 60.0}  # one network has none


def test_seconds_add_up(curves):
    assert curves["IADD"].seconds.tolist() == [0, 2, 9]


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 1, 1)])
def test_a_curve_needs_accuracies_of_each_snapshot(shape):
    with pytest.raises(InputError, match=r"expected \(2, networks\)"):
        plots.Curve(History(), [0, 1], torch.zeros(shape))


# Accuracies


def test_bars_stand_at_the_mean_accuracy(evaluations):
    ax = plots.accuracy_bars(evaluations).axes[0]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([90.0, 50.0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["learned", "random real"]
    assert ax.get_ylabel() == "test accuracy (%)"


GROUPS = {"IADD": {"CIFAR-10": (46.0, 1.0), "MNIST": (90.0, 0.5)}, "DM": {"MNIST": (80.0, 2.0)}}


def test_groups_have_a_bar_for_each_value():
    figure = plots.accuracy_groups(GROUPS, ylabel="accuracy (%)")
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["CIFAR-10", "MNIST"]
    assert ax.get_ylabel() == "accuracy (%)"
    assert [text.get_text() for text in figure.legends[0].texts] == ["IADD", "DM"]
    bars = [container for container in ax.containers if hasattr(container, "errorbar")]
    assert [[bar.get_height() for bar in group] for group in bars] == [[46.0, 90.0], [80.0]]
    # Each in its column, where one is missing as well, and beside each other.
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in group] for group in bars]
    assert [[round(centre) for centre in group] for group in centres] == [[0, 1], [1]]
    assert bars[0][1].get_x() + bars[0][1].get_width() <= bars[1][0].get_x()
    reach = [
        segment[:, 1].tolist() for group in bars for segment in group.errorbar.lines[2][0].get_segments()
    ]
    assert reach == [[45.0, 47.0], [89.5, 90.5], [78.0, 82.0]]
    assert texts(figure) == ["46.0", "90.0", "80.0"]


def test_a_method_without_values_is_left_out():
    figure = plots.accuracy_groups({"none": {}, **GROUPS}, ylabel="accuracy (%)")
    assert [text.get_text() for text in figure.legends[0].texts] == ["IADD", "DM"]


@pytest.mark.parametrize("rows", [{}, {"IADD": {}}])
def test_groups_need_values(rows):
    with pytest.raises(InputError, match="no values"):
        plots.accuracy_groups(rows, ylabel="accuracy (%)")


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


# Layers


@pytest.fixture(scope="module", params=["convnet", "resnet18"])
def layout(request):
    config = NetworkConfig(request.param)
    return ParameterLayout.of(build_network(config, channels=3, size=32, classes=10, seed=0))


def test_layers_cover_every_parameter_once(layout):
    layers = layers_of(layout)
    assert len({layer.name for layer in layers}) == len(layers)
    covered = torch.cat([layer.of(torch.arange(layout.count)) for layer in layers])
    assert torch.equal(covered.sort().values, torch.arange(layout.count))
    for layer in layers:
        sizes = [layout.shapes[layout.offsets.index(piece.start)] for piece in layer.slices]
        assert len(sizes[0]) == {"conv": 4, "norm": 1, "linear": 2}[layer.name.split()[0]]
        assert all(shape == sizes[0][:1] for shape in sizes[1:])  # a bias has a value for each output
    assert sum(layer.name.startswith("conv") for layer in layers) == sum(
        len(shape) == 4 for shape in layout.shapes
    )


def test_titles_name_every_tensor(layout):
    titles = tensor_titles(layout)
    assert len(set(titles)) == len(titles) == len(layout.names)
    for title, name, shape in zip(titles, layout.names, layout.shapes, strict=True):
        assert title.split()[-1] == name.split(".")[-1]
        if len(shape) > 1:
            assert title.split()[0] == {4: "conv", 2: "linear"}[len(shape)]


def test_a_layers_part_of_several_vectors():
    layout = ParameterLayout(("a.weight", "b.weight", "a.bias"), ((2, 1, 1, 1), (3,), (2,)))
    first, second = layers_of(layout)
    assert (first.name, second.name) == ("conv 1", "norm 1")
    assert first.of(torch.arange(14).view(2, 7)).tolist() == [[0, 1, 5, 6], [7, 8, 12, 13]]
    assert tensor_titles(layout) == ("conv 1 weight", "norm 1 weight", "conv 1 bias")


# Files


FIGURES = {
    "grid": lambda t: plots.image_grid(t.set.pictures(), t.set.labels, t.set.classes, title="α θ̃"),
    "real": lambda t: plots.real_and_distilled(t.result, t.data.train.images, t.data.train.labels),
    "stacked": lambda t: plots.real_and_distilled(t.one, t.data.train.images, t.data.train.labels),
    "before": lambda t: plots.before_after(t.result),
    "difference": lambda t: plots.parameter_difference({"IADD": t.paths}, t.layout),
    "concept": lambda t: plots.concept(t.paths, t.result.importance),
    "diagram": lambda t: plots.iteration_diagram(t.iteration),
    "weights": lambda t: plots.learned_weights(
        t.result, t.layout, hardness(t.paths), relative_hardness=hardness(t.paths, relative=True)
    ),
    "layers": lambda t: plots.importance_by_layer(t.result.importance, t.layout),
    "convergence": lambda t: plots.convergence(t.curves),
    "groups": lambda t: plots.accuracy_groups(GROUPS, ylabel="accuracy (%)"),
    "confusion": lambda t: plots.confusion_matrix(t.evaluations[0]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_files_are_reproducible_small_and_clean(name, toys, tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that no font has, a layout that does not fit
        for folder in ("first", "second"):
            plots.save_figure(FIGURES[name](toys), tmp_path / folder, name)
    assert not caplog.records
    for suffix in ("png", "pdf"):
        first, second = (
            (tmp_path / folder / f"{name}.{suffix}").read_bytes() for folder in ("first", "second")
        )
        assert first == second
    assert len(first) < 500_000
    assert b"CreationDate" not in first  # two files of the same second would not show it


@pytest.fixture
def toys(result, toy_data, toy_teachers, paths, iteration, curves, evaluations):
    """All that the figures are drawn from."""
    one = with_set(result, result.images[::2].repeat(5, 1, 1, 1), torch.arange(10), tuple("abcdefghij"))
    return SimpleNamespace(
        result=result,
        set=result.distilled,
        one=one,
        data=toy_data,
        layout=toy_teachers.layout,
        paths=paths,
        iteration=iteration,
        curves=curves,
        evaluations=evaluations,
    )


def test_saving_writes_both_formats_or_nothing(tmp_path, evaluations):
    figure = plots.accuracy_bars(evaluations)
    assert plots.save_figure(figure, tmp_path / "new", "bars") is figure
    assert (tmp_path / "new" / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "bars.pdf").read_bytes().startswith(b"%PDF")
    assert plots.save_figure(figure, "", "bars") is figure
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_notebooks_see_a_png(evaluations):
    assert plots.accuracy_bars(evaluations)._repr_png_().startswith(b"\x89PNG")
