"""What the engines cost, as pictures: the measured numbers in the right places."""

from __future__ import annotations

import pytest

from iadd_lab import plots
from iadd_lab.errors import InputError

TITLES = {"full": "full unroll", "adjoint": "adjoint", "frozen": "frozen"}
TIMES = {"full": 0.08, "adjoint": 0.04, "frozen": 0.02}  # seconds per step with ten images


def record(engine, images, steps):
    seconds = TIMES[engine] * steps * images / 10
    return {
        "engine": engine,
        "title": TITLES[engine],
        "images": images,
        "steps": steps,
        "seconds": seconds,
        "peak_mb": 100.0 + (images * steps if engine == "full" else images),
        "conv_gflops": 2.0 / TIMES[engine],  # 2 GFLOP per step with ten images
        "warm_up_seconds": seconds,
        "iterations": 3,
    }


@pytest.fixture
def measured():
    training = [("teacher epoch", "plain loop", 40.0), ("teacher epoch", "iadd-lab", 10.0),
                ("evaluation", "plain loop", 4.0), ("evaluation", "iadd-lab", 3.0)]  # fmt: skip
    return {
        "machine": {"processor": "some", "threads": 2, "torch": "2", "device": "cpu"},
        "matmul_gflops": 100.0,
        "engines": [record(e, n, j) for e in TITLES for n in (1, 10) for j in (5, 20, 50)],
        "training": [dict(zip(("task", "way", "seconds"), row, strict=True)) for row in training],
    }


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_memory_is_a_bar_for_each_engine_and_number_of_steps(measured):
    figure = plots.engine_costs(measured, title="some machine")
    few, _, many, _ = figure.axes
    assert figure.get_suptitle() == "some machine"
    assert [few.get_title(), many.get_title()] == ["1 image per step", "10 images per step"]
    assert [bar.get_height() for bar in many.patches] == [150, 300, 600] + [110] * 6
    assert words(many) == ["150", "300", "600"] + ["110"] * 6
    assert many.get_ylabel() == "peak memory (MB)"
    assert few.get_ylim() == many.get_ylim()
    measured["engines"][-1]["peak_mb"] = 2500.0
    memory = plots.engine_costs(measured).axes[2]
    assert memory.get_ylabel() == "peak memory (GB)"
    assert words(memory)[-2:] == ["0.11", "2.5"]


def test_time_is_one_too_with_its_ratio_and_its_limit(measured):
    figure = plots.engine_costs(measured)
    ax = figure.axes[3]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([80] * 3 + [40] * 3 + [20] * 3)
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert centres == pytest.approx([-0.28, 0.72, 1.72, 0, 1, 2, 0.28, 1.28, 2.28])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["5", "20", "50"]
    assert words(ax) == [""] * 3 + ["×0.50"] * 3 + ["×0.25"] * 3
    limits = [path.vertices[:, 1] for lines in ax.collections for path in lines.get_paths()]
    assert len(limits) == 9
    assert limits == [pytest.approx([20, 20])] * 9  # ms: 2 GFLOP at 100 GFLOP/s
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:3] == ["full unroll", "adjoint", "frozen"]
    assert "100 GFLOP/s" in names[3]
    assert names[4] == "×: time relative to full unroll"


def test_engines_look_alike_in_every_figure_and_what_was_left_out_is_not_compared(measured):
    def look():
        ax = plots.engine_costs(measured).axes[-1]
        return {bars.get_label(): bars[0].get_facecolor() for bars in ax.containers}, words(ax)

    everything, _ = look()
    measured["engines"] = [e for e in measured["engines"] if e["engine"] != "full" or e["steps"] < 50]
    _, ratios = look()
    assert ratios == [""] * 2 + (["×0.50"] * 2 + [""]) + (["×0.25"] * 2 + [""])
    measured["engines"] = [record("frozen", 1, 5), record("adjoint", 1, 5)]
    two, ratios = look()
    assert ratios == ["", ""]
    assert two == {name: everything[name] for name in two}
    assert len(set(everything.values())) == 3


def test_training_is_a_bar_for_each_way(measured):
    (ax,) = plots.training_costs(measured).axes
    assert [bar.get_width() for bar in ax.patches] == [1.0, 1.0, 0.25, 0.75]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["teacher epoch", "evaluation"]
    assert ax.get_xlabel() == "time of an epoch, relative to the plain loop"
    assert words(ax) == ["40 s", "4.0 s", "10 s, ×0.25", "3.0 s, ×0.75"]
    places = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    assert places == pytest.approx([-0.2, 0.8, 0.2, 1.2])


def test_nothing_measured_is_refused(measured):
    with pytest.raises(InputError, match="no engine to show"):
        plots.engine_costs(measured | {"engines": []})
    with pytest.raises(InputError, match="no training to show"):
        plots.training_costs(measured | {"training": []})


def test_files_are_the_same_every_time(measured, tmp_path):
    for folder in ("once", "again"):
        plots.save_figure(plots.engine_costs(measured), tmp_path / folder, "engines")
        plots.save_figure(plots.training_costs(measured), tmp_path / folder, "training")
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
