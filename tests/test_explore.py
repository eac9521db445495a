"""Opening stored runs, and the widgets over them: moving a value in Python moves the picture."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from iadd_lab import plots
from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Standardise
from iadd_lab.data.sets import DataConfig, load_data
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.history import History
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import Uniform
from iadd_lab.distillation.result import DistillResult
from iadd_lab.plots.explore import Explorer, explore
from iadd_lab.store.configs import describe
from iadd_lab.study.views import View, open_run, stored_runs
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig, train_teachers
from tests.samples import assert_refused

SHORT = DistillConfig(ipc=2, iterations=4, student_steps=2, teacher_epochs=1, max_start_epoch=1,
                      image_rate=1000.0, alpha=0.02, alpha_rate=1e-6, snapshots=3)  # fmt: skip
NETWORK = NetworkConfig(width=4)
MTT, DM = "digits-mtt, iterations 2, seed 0, 2", "digits-dm, iterations 2, seed 0, 3"  # as they are offered


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig("digits", train_limit=200), progress=False)


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    """A folder with teachers and runs of three kinds: learned W, W always 1, and none at all."""
    root = tmp_path_factory.mktemp("runs")
    config = TeacherConfig(network=NETWORK, epochs=1, batch=100)
    teachers = train_teachers(digits, config, root / "teachers-0", count=1, progress=False)
    uniform = replace(SHORT, matching=Uniform(), ipc=1, iterations=2, snapshots=2)
    for name, matching in (("digits-iadd-1", SHORT), ("digits-mtt-2", uniform)):
        distill(digits, teachers, matching, folder=root / name, progress=False, compile="never")
    options = {"folder": root / "digits-dm-3", "progress": False}
    plain = DistributionMatchingConfig(ipc=1, iterations=2, real_batch=8)
    match_distributions(digits, teachers.preprocess, NETWORK, plain, **options)
    return root


@pytest.fixture
def view(runs):
    return open_run(runs / "digits-iadd-1", runs=runs)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_a_stored_run_is_named_by_what_sets_it_apart(runs, view):
    names = {name: path.name for name, path in stored_runs(runs).items()}
    iadd = "digits-iadd, iterations 4, seed 0, 1"
    assert names == {iadd: "digits-iadd-1", MTT: "digits-mtt-2", DM: "digits-dm-3"}
    assert stored_runs(runs, without=[view]).keys() == {MTT, DM}


def test_an_opened_run_has_all_that_belongs_to_it(view, runs, digits):
    result = DistillResult.load(runs / "digits-iadd-1" / "distilled.safetensors")
    made = View.of(result, data=digits)
    assert view.iterations == made.iterations == [0, 2, 4]
    assert view.remark == ""
    assert view.neighbours.data.fingerprint == digits.fingerprint
    assert view.neighbours.spaces == ("pixels", "features")
    assert made.neighbours.spaces == ("pixels",)
    assert view.layout.count == made.layout.count == len(result.importance)
    assert torch.equal(view.images(2), result.images)
    start, end = (view.neighbours.of(view.images(place)[5:6], count=3).distances[0, 0] for place in (0, 2))
    assert start < 1e-5  # it began as a real image
    assert end > 0.01


def test_a_moment_is_the_latest_snapshot_until_then_and_an_image_one_of_its_class(view):
    assert [view.place(iteration) for iteration in (0, 1, 2, 3, 4, 99)] == [0, 0, 1, 1, 2, 2]
    assert [view.number(image) for image in (0, 1, 2, 19)] == [(0, 0), (0, 1), (1, 0), (9, 1)]
    assert [view.row(*view.number(image)) for image in range(20)] == list(range(20))
    assert view.row(3, 99) == 7  # the last one that the class has


def test_what_is_not_at_hand_is_remarked(runs, tmp_path):
    shutil.copytree(runs / "digits-iadd-1", tmp_path / "alone")
    alone = open_run(tmp_path / "alone", runs=tmp_path)
    assert alone.neighbours.spaces == ("pixels",)
    assert alone.remark == "no stored teacher gives features for them"
    other = replace(alone.distilled, data=DataConfig("image_folder"))
    other.save(tmp_path / "other" / "distilled.safetensors")
    folder = open_run(tmp_path / "other", runs=tmp_path)
    assert folder.neighbours is None
    assert folder.remark == "the real images that it was made of are not at hand"
    assert "The real images that it was made of are not at hand." in texts(plots.exploration([folder]))


@pytest.mark.parametrize(("name", "says"), [
    ("digits-mtt-2", ["W is always 1 in uniform matching."]),
    ("digits-dm-3", [
        "No snapshots were stored: only the last images can be shown.",
        "No learning rate α was stored.",
        "distribution matching has no W.",
    ]),
])  # fmt: skip
def test_what_a_run_does_not_have_is_said_in_its_place(runs, name, says):
    figure = plots.exploration([open_run(runs / name, runs=runs)])
    assert set(says) <= set(texts(figure))
    headings = [ax.get_title(loc="left") for ax in figure.axes]
    assert any(heading.startswith("real images nearest to “0”") for heading in headings)


def test_moving_a_widget_in_python_changes_the_picture(view, monkeypatch, capsys):
    explorer = Explorer([view], image=3)
    shown = {4: pixels(explorer.draw())}
    for iteration in (2, 0):
        explorer.iteration.value = iteration
        shown[iteration] = pixels(explorer.picture.value)
    assert shown[0].shape == shown[4].shape  # nothing jumps
    assert (shown[4] != shown[0]).any()
    assert (shown[2] != shown[0]).any()
    assert (explorer.label.value, explorer.number.value) == (1, 1)
    before = explorer.picture.value
    explorer.number.value = 0
    other = explorer.picture.value
    explorer.label.value = 4
    assert len({before, other, explorer.picture.value}) == 3
    monkeypatch.setattr("iadd_lab.plots.explore.exploration", None)  # what was drawn once is not drawn again
    explorer.label.value = 1
    assert explorer.picture.value == other
    assert "can't be shown" not in capsys.readouterr().out


def test_a_point_on_the_curves_marks_the_iteration_but_for_the_start(view):
    start, later = (plots.exploration([view], iteration=number).axes[1].lines[-1] for number in (0, 2))
    assert start.get_xdata() == [0, 0]
    assert later.get_ydata() == [view.history.loss[1]]


def test_what_stands_beside_each_other_is_level_and_equally_large(view, runs):
    figure = plots.exploration([view, open_run(runs / "digits-mtt-2", runs=runs)])
    figure.draw_without_rendering()
    places = {ax.get_label(): ax.get_position() for ax in figure.axes}
    for name in {label.split()[0] for label in places}:
        left, right = (places[f"{name} {run}"] for run in range(2))
        assert (left.y0, left.y1, left.width) == pytest.approx((right.y0, right.y1, right.width))


def test_choosing_another_run_offers_what_that_one_has(view, runs, capsys):
    explorer = Explorer([view], runs=runs, image=11)
    narrow = pixels(explorer.draw()).shape[1]
    assert list(explorer.run.options) == ["digits-iadd-1", DM, MTT]  # not once more among those stored
    explorer.beside.value = MTT
    assert pixels(explorer.picture.value).shape[1] > narrow
    explorer.run.value = MTT
    assert list(explorer.iteration.options) == [0, 2]
    assert (explorer.iteration.value, explorer.label.value, explorer.number.value) == (2, 5, 0)
    assert len(explorer.views) == 1  # not the same run twice
    explorer.run.value = DM
    assert list(explorer.iteration.options) == [2]
    assert "can't be shown" not in capsys.readouterr().out


def test_a_damaged_run_is_told_and_the_picture_stays(view, runs, tmp_path, capsys):
    shutil.copytree(runs / "digits-mtt-2", tmp_path / "mtt-4")
    explorer = Explorer([view], runs=tmp_path)
    before = explorer.draw()
    path = tmp_path / "mtt-4" / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    explorer.run.value = "mtt, iterations 2, seed 0, 4"
    assert "This can't be shown: " in capsys.readouterr().out
    assert explorer.picture.value == before
    explorer.run.value = view.title
    assert "can't be shown" not in capsys.readouterr().out


def test_pages_without_widgets_get_the_figure(view, monkeypatch):
    bundle = explore([view], interactive=True)._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(bundle)
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(explore([view]), Figure)
    monkeypatch.setenv("JPY_SESSION_NAME", "explore.ipynb")
    assert isinstance(explore([view]), Explorer)


@pytest.mark.parametrize("make", [plots.exploration, Explorer])
def test_what_can_not_be_shown_is_refused_in_one_sentence(view, tmp_path, make):
    for views in ([], [view] * 3):
        assert_refused("give one, or two", make, views)
    assert_refused("image is 20", make, [view], image=20)
    assert_refused("count is 0", make, [view], count=0)
    assert_refused("both views are called 'digits-iadd-1'", Explorer, [view, view])
    assert_refused("is no folder", Explorer, [view], runs=tmp_path / "none")


def test_more_classes_than_columns_are_shown_ten_at_a_time():
    """The page is the one of the picked class, in either run; colours and W over many layers are drawn."""
    draw = torch.Generator().manual_seed(0)
    images, unit = torch.rand(12, 3, 32, 32, generator=draw), Standardise(torch.zeros(3), torch.ones(3))
    classes, data = tuple(f"class {number}" for number in range(12)), DataConfig("cifar10")
    made = DistilledSet(images, torch.arange(12), 0.01, unit, classes, data, "", "learned")
    made_by = {"teachers": {"config": describe(TeacherConfig(network=NetworkConfig("vgg11")))}}
    view = View("large", made, History(), made_by)
    weights = torch.rand(view.layout.count, generator=draw)
    history = History(snapshot_iterations=[0], snapshot_images=[images], snapshot_importance=[weights])
    figure = plots.exploration([replace(view, history=history)], image=11)
    names = [text.get_text() for text in figure.axes[0].texts]
    assert "class 10" in names
    assert "class 9" not in names
    assert len(figure.axes[3].get_yticklabels()) <= 7
