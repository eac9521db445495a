"""Pictures: the right pixels and numbers in the right places."""

import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.font_manager import findfont
from nbclient import NotebookClient

from iadd_lab import plots
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.history import History
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import Learned, Uniform
from iadd_lab.errors import InputError
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation
from iadd_lab.plots import names
from iadd_lab.plots.layers import layers, tensors
from iadd_lab.plots.names import fit_name, readable
from iadd_lab.plots.style import house_style
from iadd_lab.plots.tiles import tile
from iadd_lab.study.replay import hardness, one_iteration, replay
from iadd_lab.training.networks import NetworkConfig, ParameterLayout, build_network
from tests.conftest import AUGMENT

CONFIG = DistillConfig(
    ipc=2, iterations=4, student_steps=2, teacher_epochs=1, max_start_epoch=2, snapshots=3, augment=AUGMENT
)


@pytest.fixture(scope="module")
def result(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, replace(CONFIG, matching=Learned(rate=0.1)), progress=False)


@pytest.fixture(scope="module")
def uniform(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, replace(CONFIG, matching=Uniform()), progress=False)


@pytest.fixture(scope="module")
def paths(result, toy_teachers):
    return replay(result, toy_teachers, segments=3)


@pytest.fixture
def evaluations():
    made = partial(Evaluation, classes=("zero", "one"), config=EvaluateConfig(networks=2))
    counts = {"learned": [[[9, 1], [1, 9]], [[8, 2], [0, 10]]], "random real": [[[5, 5]] * 2, [[6, 4]] * 2]}
    return [made(torch.tensor(confusion), method=method) for method, confusion in counts.items()]


@pytest.fixture
def curve(result):
    accuracies = torch.tensor([[0.2, 0.4], [0.5, 0.5], [0.7, 0.9]])
    return plots.Curve(result.history, result.history.snapshot_iterations, accuracies)


def words(figure) -> str:
    """All that is written in a figure's axes."""
    return "\n".join(text for ax in figure.axes for text in labels(ax))


def labels(ax) -> list[str]:
    return texts(ax.texts)


def texts(artists) -> list[str]:
    return [text.get_text() for text in artists]


def heights(ax) -> list[float]:
    return [bar.get_height() for bar in ax.patches]


def centres(ax) -> list[float]:
    return [bar.get_center()[0] for bar in ax.patches]


def as_bytes(pictures):
    return (pictures * 255).round().to(torch.uint8).numpy()


def picture(image, row, column):
    """One grey picture of 8 × 8 out of a tiled image: each pixel 4 × 4 times, and gaps of 1."""
    top, left = 33 * row, 33 * column
    return image[top : top + 32 : 4, left : left + 32 : 4, 0]


# Tiles and grids.


def test_tiles_are_the_pictures_between_white_gaps():
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    image = tile(pictures, columns=2)
    assert image.shape == (65, 65, 3)
    for place, expected in enumerate(pictures):
        top, left = place // 2 * 33, place % 2 * 33
        assert np.array_equal(image[top : top + 32, left : left + 32], expected.permute(1, 2, 0))
    assert (image[32] == 255).all()
    assert (image[33:, 33:] == 255).all()  # the fourth place is empty
    large = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 1, 64, 64)
    assert (tile(large, columns=1, most_pixels=16) == 128).all()


def test_a_grid_has_a_block_per_class_and_before_after_its_first_image(result):
    made = result.distilled
    figure = plots.image_grid(made.pictures(), made.labels, made.classes, title="all")
    assert figure.get_suptitle() == "all"
    assert words(figure) == "0\n1"
    expected = as_bytes(made.pictures())
    found = [picture(drawn.get_array(), row, 0) for drawn in figure.axes[0].images for row in range(2)]
    assert np.array_equal(found, expected[:, 0])
    start = as_bytes(made.pictures(result.history.snapshot_images[0]))
    image = plots.before_after(result).axes[0].images[0].get_array()
    for row, pictures in enumerate((start, expected)):
        found = [picture(image, row, column) for column in range(2)]
        assert np.array_equal(found, pictures[::2, 0])


@pytest.mark.parametrize(
    ("classes", "ipc", "side", "rows"), [(10, 50, 32, 1), (23, 1, 4, 3), (100, 1, 32, 10), (200, 1, 64, 12)]
)
def test_large_grids_fit_a_page_in_rows_of_blocks(classes, ipc, side, rows):
    pictures, labels = torch.rand(classes * ipc, 3, side, side), torch.arange(classes).repeat_interleave(ipc)
    figure = plots.image_grid(pictures, labels, [f"a very long class n{n}" for n in range(classes)])
    (ax,) = figure.axes  # axes for each block would take seconds
    assert len({drawn.get_extent()[3] for drawn in ax.images}) == rows
    assert len(ax.images) == classes
    assert ax.texts[0].get_text() in ("a very long\nclass n0", "a very\nlong…")
    width, height = figure.get_size_inches()
    assert width < 7.6
    assert height < 9.5


def test_names_are_fitted_in_lines():
    for name, fitted in (
        ("aquarium_fish", "aquarium\nfish"),
        ("German shepherd, German shepherd dog", "German\nshepherd"),
        ("supercalifragilistic", "supercalifr…"),
    ):
        assert fit_name(*readable([name]), 0.7) == fitted


def test_names_of_any_letters_are_told_apart(monkeypatch, caplog):
    """Where no font has their letters, they are numbered, which is said once; dollars are no formulas."""
    classes = (
        "Ba$$in",
        "日本",
        "中文",
        "a\nb\x1b",
        "dog, large",
        "dog, small",
        "_",
        "שלום",
        "$x$",
        "\udce9c",
    )
    expected = [
        "Ba$$in",
        "class 1",
        "class 2",
        "a b",
        "dog, large",
        "dog, small",
        "class 6",
        "שלום",
        "$x$",
        "c",
    ]
    monkeypatch.setattr(names, "findSystemFonts", list)
    evaluation = Evaluation(torch.ones(1, 10, 10, dtype=int), classes, EvaluateConfig(networks=1), "日本")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = plots.confusion_matrix(evaluation)
        grid = plots.image_grid(torch.rand(10, 1, 8, 8), torch.arange(10), classes)
        assert all(figure._repr_png_() for figure in (matrix, grid))
    assert texts(matrix.axes[0].get_yticklabels()) == labels(grid.axes[0]) == expected
    assert [record.getMessage()[:17] for record in caplog.records] == ["No font here has "]


def test_fonts_with_letters_that_the_usual_one_has_not_join_it(monkeypatch):
    usual, other = (findfont(family) for family in ("DejaVu Sans", "STIXGeneral"))
    letter = min(names._letters_of(other) - names._letters_of(usual))
    monkeypatch.setattr(names, "findSystemFonts", lambda: [__file__, other])
    monkeypatch.setattr(names, "FAMILIES", ["DejaVu Sans"])
    with house_style():
        assert readable([letter]) == [letter]
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "STIXGeneral"]


def test_real_images_stand_left_of_distilled_ones(result, toy_data):
    rows = torch.stack([(toy_data.train.labels == label).nonzero()[0, 0] for label in (0, 1)])
    real, made = toy_data.train.images[rows], as_bytes(result.distilled.pictures())
    ax = plots.real_and_distilled(result, real, torch.tensor([0, 1])).axes[0]
    for number, drawn in enumerate(ax.images):
        image = drawn.get_array()
        assert np.array_equal(picture(image, 0, 0), real[number, 0])  # bytes, as they are
        assert np.array_equal(picture(image, 1, 1), made[2 * number + 1, 0])
        assert (picture(image, 1, 0) == 255).all()  # there is one real image only
    assert words(ax.figure).split()[:3] == ["0", "real", "distilled"]


# Curves.


def test_history_shows_every_iteration_and_marks_each_place_of_a_back_off_once(result):
    loss, alpha, share = plots.history_plot(result.history).axes
    names = ("loss", "unweighted_loss", "alpha", "importance_share")
    lines = [line for ax in (loss, alpha, share) for line in ax.lines]
    for line, name in zip(lines, names, strict=True):
        assert np.array_equal(line.get_ydata(), getattr(result.history, name))
    history = replace(result.history, back_off_iterations=[2, 2, 4], back_off_rates=[0] * 3)
    for ax in plots.history_plot(history).axes:
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [2, 4]
        assert texts(ax.get_legend().get_texts()).count("rate halved") == 1


def test_a_long_history_gets_its_running_mean():
    loss = [float(n) for n in range(100)]
    history = History(loss=loss, unweighted_loss=loss, alpha=[0.1] * 100, importance_share=[1.0] * 100)
    raw, mean = plots.history_plot(history).axes[0].lines  # once: with and without W it is the same
    assert len(raw.get_xdata()) == 100
    assert mean.get_xdata()[0] == 5
    assert mean.get_ydata()[0] == pytest.approx(2.0)


def test_convergence_compares_the_loss_without_w(curve):
    loss, alpha, accuracy, clock = plots.convergence({"IADD": curve}).axes
    assert np.array_equal(loss.lines[0].get_ydata(), curve.history.unweighted_loss)
    assert np.array_equal(loss.lines[1].get_ydata(), curve.history.loss)
    assert np.array_equal(alpha.lines[0].get_ydata(), curve.history.alpha)
    assert accuracy.lines[0].get_ydata() == pytest.approx([30, 50, 80])
    band = accuracy.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((30 - 100 * 0.02**0.5, 80 + 100 * 0.02**0.5))
    seconds = np.cumsum([0.0, *curve.history.seconds])[[0, 2, 4]]
    assert clock.lines[0].get_xdata() == pytest.approx(seconds)


# Importance.


def test_importance_by_layer_has_a_box_per_tensor(toy_teachers):
    layout = toy_teachers.layout
    importance = torch.arange(layout.count) / layout.count
    ax = plots.importance_by_layer(importance, layout).axes[0]
    titles = texts(ax.get_yticklabels())
    assert titles[:4] == ["conv 1 weight", "conv 1 bias", "norm 1 weight", "norm 1 bias"]
    assert len(set(titles)) == len(layout.names)
    medians = {line.get_xdata()[0] for line in ax.lines if line.get_color() == "black"}
    for values in importance.split(list(layout.sizes)):
        assert np.abs(np.array([*medians]) - np.median(values)).min() < 1e-6


def test_learned_weights_against_hardness(result, toy_teachers):
    hard = torch.rand(toy_teachers.layout.count) + 0.1
    hard[:5] = 0
    figure = plots.learned_weights(result, toy_teachers.layout, hard, relative_hardness=1 / result.importance)
    _, course, raw, relative = figure.axes
    snapshots = torch.stack(result.history.snapshot_importance)
    part = layers(toy_teachers.layout)[0]
    assert course.lines[0].get_ydata() == pytest.approx(np.median(snapshots[:, part.place], axis=1))
    assert "5 of " in raw.texts[0].get_text()
    assert "are at 0" in raw.texts[0].get_text()
    assert relative.get_title().endswith("ρ = −1.00")


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("convnet", 8, ["conv 1", "norm 1", "conv 2", "norm 2", "linear"]),
        ("convnet", 64, ["block 1", "block 2", "block 3", "block 4", "linear"]),
        ("alexnet", 32, ["conv 1", "conv 2", "conv 3", "conv 4", "conv 5", "linear"]),
        ("vgg11", 32, ["blocks 1–2", "blocks 3–4", "blocks 5–6", "blocks 7–8", "linear"]),
        ("resnet18", 32, [*(f"blocks {n}–{n + 3}" for n in (1, 5, 9, 13)), "blocks 17–20", "linear"]),
    ],
)
def test_layers_cover_every_parameter_once(name, size, expected):
    network = build_network(NetworkConfig(name), channels=3, size=size, classes=10, seed=0)
    layout = ParameterLayout.of(network)
    for parts in (layers(layout), tensors(layout)):
        starts, stops = zip(*((part.place.start, part.place.stop) for part in parts), strict=True)
        assert (*starts, layout.count) == (0, *stops)
    assert [part.name for part in layers(layout)] == expected


# Students beside teachers.


def test_differences_are_the_first_segments(paths, toy_teachers):
    layout = toy_teachers.layout
    figure = plots.parameter_difference({"learned": paths}, layout)
    parts = layers(layout)
    panels, bars = figure.axes[: len(parts)], figure.axes[-1]
    unit = 10.0 ** round(np.log10(paths[0].difference.double().square().mean().sqrt().item()))
    kinds = ("difference", "movement")
    found = {kind: torch.stack([getattr(path, kind) for path in paths]) for kind in kinds}
    for ax, part, bar in zip(panels, parts, bars.patches, strict=True):
        expected = paths[0].difference[part.place].double().numpy() / unit
        assert ax.lines[0].get_ydata() == pytest.approx(expected)
        rms, moved = (each[:, part.place].double().square().mean().sqrt().item() for each in found.values())
        assert f"RMS {rms / unit:.2f}" in ax.get_title()
        assert bar.get_height() == pytest.approx(100 * rms / moved)
    student = paths[0].student.clone()
    student[-1, 0] += 1000.0
    extreme = replace(paths[0], student=student)
    assert "1 beyond" in words(plots.parameter_difference({"a": paths, "b": [extreme]}, layout))


def test_concept_draws_every_pair(paths, result):
    cloud = plots.concept(paths, result.importance).axes[1].collections[0]
    starts = [path.trajectory[path.start_epoch] for path in paths]
    moved = [[path.target for path in paths], [path.end for path in paths]]
    moved = [np.sort((torch.cat(ends) - torch.cat(starts)).double().numpy()) for ends in moved]
    unit = moved[0][-1] / np.max(cloud.get_offsets()[:, 0])
    for drawn, expected in zip(np.asarray(cloud.get_offsets()).T, moved, strict=True):
        assert np.sort(drawn) * unit == pytest.approx(expected, abs=1e-9)


def test_the_plane_is_that_of_the_principal_components(result, paths):
    """Distances in the plane are those of the points projected on the two directions of largest variance."""
    path = paths[0]
    first = max(path.start_epoch - 1, 0)
    points = torch.cat([path.trajectory[first : path.target_epoch + 2], path.student]).double()
    centred = points - points.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    expected = (centred @ directions[:2].T).abs().numpy()
    ax = plots.concept([path], result.importance).axes[0]
    drawn = np.concatenate([line.get_xydata() for line in ax.lines[:2]])
    assert np.abs(drawn) == pytest.approx(expected, abs=1e-6)
    share = 100 * values[0].square() / values.square().sum()
    assert f"({share:.0f} % of the variance)" in ax.get_xlabel()


def test_the_diagram_carries_the_runs_numbers(result, uniform, toy_teachers):
    iteration = one_iteration(result, toy_teachers, real_images=291)
    said = words(plots.iteration_diagram(iteration, title="One iteration"))
    names = ("loss", "unweighted_loss", "image_gradient", "importance_gradient")
    numbers = [f"= {getattr(iteration, name):.3g}" for name in names]
    numbers += [f"distance {getattr(iteration, name):.3g}" for name in ("start_distance", "end_distance")]
    numbers += [f"teacher {iteration.teacher + 1} of 2", f"J = 2 steps, α = {result.alpha:.3g}"]
    numbers += ["291 real images", "4 distilled images", f"{len(result.importance):,} weights"]
    assert [number for number in numbers if number not in said] == []
    plain = words(plots.iteration_diagram(one_iteration(uniform, toy_teachers, real_images=291)))
    assert "for every" in plain
    assert "as it is learned" not in plain


# Accuracies.


def test_bars_stand_at_the_mean_accuracy(result, evaluations):
    ax = plots.accuracy_bars(evaluations).axes[0]
    assert heights(ax) == pytest.approx([90.0, 50.0])
    assert texts(ax.get_xticklabels()) == ["learned", "random real"]
    assert ax.get_ylabel() == "test accuracy (%)"
    images, bars = plots.overview(result, evaluations).axes
    assert len(images.images) == 1
    assert len(bars.patches) == 2


def test_groups_have_a_bar_for_each_value():
    rows = {"MTT": {"IPC 1": (40.0, 1.0), "IPC 10": (60.0, 2.0)}, "IADD": {"IPC 10": (65.0, 0.5)}, "DM": {}}
    ax = plots.accuracy_groups(rows, ylabel="test accuracy (%)").axes[0]
    assert heights(ax) == [40.0, 60.0, 65.0]
    assert centres(ax) == pytest.approx([-0.28, 0.72, 1.0])
    assert labels(ax) == ["40.0", "60.0", "65.0"]


def test_confusion_is_in_per_cent_of_the_true_class(evaluations):
    alike = replace(evaluations[0], classes=("the same first letters 1", "the same first letters 2"))
    for evaluation in (evaluations[0], alike):
        assert labels(plots.confusion_matrix(evaluation).axes[0]) == ["85", "15", "5", "95"]


# What engines cost.

TIMES = {"full": 0.08, "adjoint": 0.04, "frozen": 0.02}  # seconds per step with ten images
FIELDS = ("engine", "title", "images", "steps", "seconds", "peak_mb", "conv_gflops")


def record(engine, images, steps):
    title, seconds = engine.replace("full", "full unroll"), TIMES[engine] * steps * images / 10
    memory, rate = 100.0 + images * (steps if engine == "full" else 1), 2.0 / TIMES[engine]
    return dict(zip(FIELDS, (engine, title, images, steps, seconds, memory, rate), strict=True))


@pytest.fixture
def measured():
    training = [("teacher epoch", "plain loop", 40.0), ("teacher epoch", "iadd-lab", 10.0),
                ("evaluation", "plain loop", 4.0), ("evaluation", "iadd-lab", 3.0)]  # fmt: skip
    return {
        "matmul_gflops": 100.0,
        "engines": [record(e, n, j) for e in TIMES for n in (1, 10) for j in (5, 20, 50)],
        "training": [dict(zip(("task", "way", "seconds"), row, strict=True)) for row in training],
    }


def test_memory_is_a_bar_for_each_engine_and_number_of_steps(measured):
    figure = plots.engine_costs(measured, title="some machine")
    few, _, many, _ = figure.axes
    assert figure.get_suptitle() == "some machine"
    assert [few.get_title(), many.get_title()] == ["1 image per step", "10 images per step"]
    assert heights(many) == [150, 300, 600] + [110] * 6
    assert labels(many) == ["150", "300", "600"] + ["110"] * 6
    assert many.get_ylabel() == "peak memory (MB)"
    assert few.get_ylim() == many.get_ylim()
    measured["engines"][-1]["peak_mb"] = 2500.0
    memory = plots.engine_costs(measured).axes[2]
    assert memory.get_ylabel() == "peak memory (GB)"
    assert labels(memory)[-2:] == ["0.11", "2.5"]


def test_time_is_one_too_with_its_ratio_and_its_limit(measured):
    figure = plots.engine_costs(measured)
    ax = figure.axes[3]
    assert heights(ax) == pytest.approx([80] * 3 + [40] * 3 + [20] * 3)
    assert centres(ax) == pytest.approx([-0.28, 0.72, 1.72, 0, 1, 2, 0.28, 1.28, 2.28])
    assert texts(ax.get_xticklabels()) == ["5", "20", "50"]
    assert labels(ax) == [""] * 3 + ["×0.50"] * 3 + ["×0.25"] * 3
    limits = [path.vertices[:, 1] for lines in ax.collections for path in lines.get_paths()]
    assert limits == [pytest.approx([20, 20])] * 9  # ms: 2 GFLOP at 100 GFLOP/s
    names = texts(figure.legends[0].get_texts())
    assert names[:3] == ["full unroll", "adjoint", "frozen"]
    assert "100 GFLOP/s" in names[3]
    assert names[4] == "×: time relative to full unroll"


def test_engines_look_alike_in_every_figure_and_what_was_left_out_is_not_compared(measured):
    def look(*engines):
        ax = plots.engine_costs({**measured, "engines": engines}).axes[-1]
        return {bars.get_label(): bars[0].get_facecolor() for bars in ax.containers}, labels(ax)

    some = [each for each in measured["engines"] if each["engine"] != "full" or each["steps"] < 50]
    colours, ratios = look(*some)
    assert ratios == [""] * 2 + (["×0.50"] * 2 + [""]) + (["×0.25"] * 2 + [""])
    two, ratios = look(record("frozen", 1, 5), record("adjoint", 1, 5))
    assert ratios == ["", ""]
    assert two == {name: colours[name] for name in two}
    assert len(set(colours.values())) == 3


def test_training_is_a_bar_for_each_way(measured):
    (ax,) = plots.training_costs(measured).axes
    assert [bar.get_width() for bar in ax.patches] == [1.0, 1.0, 0.25, 0.75]
    assert texts(ax.get_yticklabels()) == ["teacher epoch", "evaluation"]
    assert ax.get_xlabel() == "time of an epoch, relative to the plain loop"
    assert labels(ax) == ["40 s", "4.0 s", "10 s, ×0.25", "3.0 s, ×0.75"]
    assert [bar.get_center()[1] for bar in ax.patches] == pytest.approx([-0.21, 0.79, 0.21, 1.21])


# Refusing, showing and saving.


def test_what_can_not_be_drawn_is_refused_in_one_sentence(result, uniform, paths, toy_teachers):
    two, layout = torch.tensor([0, 1]), toy_teachers.layout
    other = ParameterLayout(("one.weight",), ((3,),))
    for make, arguments, sentence in (
        (plots.image_grid, (torch.rand(2, 8, 8), two, "ab"), "channels"),
        (plots.image_grid, (torch.rand(0, 2, 8, 8), two[:0], "ab"), r"\(0, 2, 8, 8\)"),
        (plots.image_grid, (torch.rand(2, 1, 8, 8), two[:1], "ab"), "one for each"),
        (plots.image_grid, (torch.rand(2, 1, 8, 8), 2 * two, "ab"), "name them all"),
        (plots.real_and_distilled, (result, torch.rand(2, 3, 8, 8), two), "that was distilled"),
        (plots.Curve, (result.history, [0, 2], torch.zeros(3, 2)), r"\(3, 2\); it must be \(2 iterations"),
        (plots.Curve, (result.history, [0, 2, 4], torch.zeros(3)), r"\(3,\); it must be \(3 iterations"),
        (plots.Curve, (result.history, [0, 2, 5], torch.zeros(3, 2)), "not all within the 4"),
        (plots.Curve, (result.history, [-1, 2, 4], torch.zeros(3, 2)), "not all within the 4"),
        (plots.convergence, ({},), "no run to show"),
        (plots.engine_costs, ({"engines": []},), "no engine to show"),
        (plots.training_costs, ({"training": []},), "no training to show"),
        (plots.learned_weights, (uniform, layout, torch.rand(layout.count)), "always 1 in uniform"),
        (plots.learned_weights, (result, layout, torch.rand(3)), "give both of one run"),
        (plots.parameter_difference, ({}, layout), "no method"),
        (plots.parameter_difference, ({"a": []}, layout), "no segment"),
        (plots.parameter_difference, ({"a": paths}, other), "a segment of a has .* but the network has 3"),
        (plots.concept, ([], result.importance), "no path"),
        (plots.concept, (paths, result.importance[:3]), "importance"),
        (partial(plots.accuracy_groups, ylabel=""), ({"MTT": {}},), "no accuracy"),
        (partial(plots.LivePlot, seconds=-1), (toy_teachers.preprocess,), "seconds is -1"),
        (partial(plots.LivePlot, most=0), (toy_teachers.preprocess,), "most is 0"),
        (partial(plots.LivePlot, iterations=0), (toy_teachers.preprocess,), "iterations is 0"),
        (partial(plots.LivePlot, ipc=0), (toy_teachers.preprocess,), "ipc is 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            make(*arguments)


@pytest.fixture
def moments(monkeypatch, result):
    """When `live` draws, on a clock of its own, during iterations that take so many seconds each."""
    drawn, clock = [], SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("iadd_lab.plots.curves.time", clock)
    monkeypatch.setattr(plots.LivePlot, "draw", lambda *_: drawn.append(clock.now))

    def run(live, *, seconds, iterations):
        drawn.clear()
        for iteration in range(1, iterations + 1):
            clock.now += seconds
            live(iteration, result.history)
        return list(drawn)

    return run


def test_live_plot_redraws_every_few_seconds_ever_more_seldom_and_so_often_at_most(moments, toy_teachers):
    live = plots.LivePlot(toy_teachers.preprocess, seconds=2.0, iterations=8)
    live(0, History())  # a divergence at once: there is nothing to show
    # The last one is not waited for.
    assert moments(live, seconds=0.75, iterations=8) == [100.75, 103.0, 105.25, 106.0]
    live = plots.LivePlot(toy_teachers.preprocess, seconds=0.5, most=5, iterations=60)
    assert len(moments(live, seconds=1.0, iterations=59)) == live.drawn == 5
    assert len(moments(live, seconds=1.0, iterations=60)) == 1  # once in the end
    live = plots.LivePlot(toy_teachers.preprocess, seconds=10.0, most=40)
    gaps = np.diff(moments(live, seconds=1.0, iterations=600))
    assert (gaps[:19] == 10).all()  # then half of its drawings are used
    assert (np.diff(gaps[19:]) >= 0).all()
    assert gaps[-1] > 20
    assert len(gaps) < 39


def test_an_executed_notebook_keeps_one_picture_of_a_live_plot():
    source = """
import torch
from nbclient import NotebookClient
from iadd_lab.distillation.history import History
from iadd_lab.plots import LivePlot
from iadd_lab.data.preprocess import Standardise
preprocess = Standardise.fit(torch.rand(4, 1, 8, 8))
history, live = History(), LivePlot(preprocess, seconds=0.0, most=4, iterations=9)
history.snapshot_images.append(torch.rand(2, 1, 8, 8)), history.snapshot_iterations.append(0)
for iteration in range(1, 10):
    history.loss.append(1 / iteration)
    live(iteration, history)
print(live.drawn)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3", timeout=600).execute()
    picture, printed = notebook.cells[0].outputs
    assert picture.data["image/png"]
    assert printed.text == "5\n"


def test_saving_writes_both_formats_or_nothing(tmp_path, evaluations):
    figure = plots.accuracy_bars(evaluations)
    for folder in (tmp_path / "new", ""):
        assert plots.save_figure(figure, folder, "bars") is figure
    assert (tmp_path / "new" / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "bars.pdf").read_bytes().startswith(b"%PDF")
    assert {path.name for path in tmp_path.iterdir()} == {"new"}
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows


def test_a_users_own_style_changes_nothing(evaluations):
    expected = plots.accuracy_bars(evaluations)._repr_png_()
    own = {"text.usetex": True, "font.family": ["serif"], "font.size": 30, "savefig.bbox": "tight",
           "savefig.transparent": True, "axes.formatter.use_locale": True, "lines.linewidth": 9}  # fmt: skip
    with matplotlib.rc_context(own):
        assert plots.accuracy_bars(evaluations)._repr_png_() == expected


def test_files_are_small_and_the_same_every_time(tmp_path, result, paths, toy_teachers, curve, measured):
    layout = toy_teachers.layout
    makers = {
        "difference": lambda: plots.parameter_difference({"a": paths, "b": paths}, layout, title="twice"),
        "concept": lambda: plots.concept(paths, result.importance),
        "weights": lambda: plots.learned_weights(result, layout, hardness(paths)),
        "diagram": lambda: plots.iteration_diagram(one_iteration(result, toy_teachers, real_images=9)),
        "engines": lambda: plots.engine_costs(measured),
        "training": lambda: plots.training_costs(measured),
        "convergence": lambda: plots.convergence({"a": curve}),
        "grid": lambda: plots.image_grid(result.distilled.pictures(), result.labels, ("a", "b")),
    }
    for name, make in makers.items():
        for folder in ("once", "again"):
            plots.save_figure(make(), tmp_path / folder, name)
        for suffix in ("png", "pdf"):
            once, again = (path.read_bytes() for path in tmp_path.glob(f"*/{name}.{suffix}"))
            assert once == again
            assert suffix == "png" or len(once) < 200_000
