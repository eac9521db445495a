"""The study: every cell is computed once, shared where it can be, and never shown stale."""

import pickle
from dataclasses import replace

import pytest
import torch

import iadd_lab
from iadd_lab.errors import DivergenceError
from iadd_lab.store.configs import RESULT_VERSION
from iadd_lab.study.methods import METHODS, Method
from iadd_lab.study.settings import Setting
from iadd_lab.study.study import Study, runs_root
from iadd_lab.study.tables import notes
from iadd_lab.training.networks import NetworkConfig
from tests.samples import assert_refused

SHORT = {"iterations": 3, "student_steps": 2, "teacher_epochs": 1, "max_start_epoch": 2, "alpha": 0.02}
SHORT |= {"teacher_training_epochs": 3, "evaluation_networks": 2, "evaluation_epochs": 3, "whole_epochs": 1}
SHORT |= {"gradient_matching_iterations": 2, "distribution_matching_iterations": 2, "alpha_rate": 1e-6}
TINY = Setting("digits", width=4, teacher_count=2, teacher_batch=256, **SHORT)
# Of the tiny setting, measured once; see `test_results_change_only_with_their_version`.
GOLDEN = {"loss": 1.15771, "alpha": 0.0193855, "weights": 0.0147632}
GOLDEN |= {"iadd": 89.3348, "dsa": 0.89179, "dm": 2.72051}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Study:
    """A study whose runs all tests of this module share."""
    return Study(tmp_path_factory.mktemp("runs"), device="cpu", threads=1, progress=False)


def stored(lab, pattern="**/*.safetensors"):
    """What lies among the runs, and when it was written: equal before and after what is only read."""
    return {path: path.stat().st_mtime_ns for path in lab.runs.glob(pattern)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_cell(lab, method):
    cell = lab.cell(TINY, method)
    assert cell.evaluation.confusion.shape == (2, 10, 10)
    assert cell.evaluation.confusion.sum() == 2 * len(lab.data(TINY).test)
    assert cell.evaluation.method == cell.title == METHODS[method].title
    made = lab.sets(TINY, method)
    if method != "whole":
        assert made[0].labels.tolist() == list(range(10))
    # Random images are drawn anew for each network.
    assert torch.equal(made[0].images, made[1].images) == (method != "random")


def test_a_cell_is_computed_once(lab):
    first = lab.cell(TINY, "iadd")
    before = stored(lab)
    again = Study(lab.runs, device="cpu", threads=1, progress=False).cell(TINY, "iadd")
    assert stored(lab) == before
    assert torch.equal(first.evaluation.confusion, again.evaluation.confusion)


def test_teachers_are_shared_by_all_cells_that_can(lab):
    two, files = lab.teachers(TINY), "teachers-*/*.safetensors"
    before = stored(lab, files)
    for change in ({"iterations": 2}, {"ipc": 2}, {"seed": 5}, {"teacher_count": 1}):
        lab.cell(replace(TINY, **change), "mtt")
    assert stored(lab, files) == before
    three = lab.teachers(replace(TINY, teacher_count=3))  # the third joins the two
    assert (len(three), three.folder, len(lab.teachers(TINY))) == (3, two.folder, 2)
    assert stored(lab, files).items() > before.items()
    assert len(stored(lab, files)) == len(before) + 1


CHANGES = {"iterations": 4, "image_rate": 99.0, "alpha": 0.021, "student_steps": 3, "weight_rate": 0.004}
CHANGES |= {"teacher_rate": 0.011, "width": 5, "train_limit": 500, "seed": 1, "teacher_count": 1}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_is_a_new_run(lab, field):
    counts = []
    for setting in (TINY, replace(TINY, **{field: CHANGES[field]})):
        lab.result(setting, "iadd")
        counts.append(len(list(lab.runs.glob("digits-ipc1-iadd-*"))))
    assert counts[1] == counts[0] + 1


def test_what_is_made_with_less_precision_is_kept_apart(lab, tmp_path):
    less = Study(lab.runs, device="cpu", precision="bf16", threads=1, progress=False)
    names = [study._teacher_folder(TINY) for study in (lab, less)]
    names += [study.folder(TINY, "dm", 1) for study in (lab, less)]
    assert len(set(names)) == 4
    counts = []
    for study in (lab, less):
        study.evaluate(lab.sets(TINY, "random"), TINY, TINY.evaluation())
        counts.append(len(stored(lab, "evaluations/*")))
    assert counts[1] == counts[0] + 1
    assert torch.get_float32_matmul_precision() == "highest"  # put back


def test_an_evaluation_goes_by_what_the_sets_hold(lab):
    setting = replace(TINY, weight_rate=0.0)  # W stays at 1: the set is that of uniform matching
    uniform = lab.cell(TINY, "mtt").evaluation
    before = stored(lab, "evaluations/*")
    learned = lab.cell(setting, "iadd").evaluation
    assert stored(lab, "evaluations/*") == before
    assert torch.equal(uniform.confusion, learned.confusion)
    assert learned.method == METHODS["iadd"].title
    lab.cell(replace(TINY, evaluation_epochs=4), "mtt")
    assert len(stored(lab, "evaluations/*")) == len(before) + 1


def test_seeds_are_pooled_and_differ(lab):
    two = lab.cell(replace(TINY, seeds=2), "iadd").evaluation
    first = lab.cell(TINY, "iadd").evaluation
    second = lab.cell(replace(TINY, seed=1), "iadd").evaluation
    assert torch.equal(two.confusion, torch.cat([first.confusion, second.confusion]))
    assert not torch.equal(first.confusion, second.confusion)


def test_the_whole_set_has_epochs_of_its_own_and_all_sets_the_rate_that_is_given(lab):
    fixed = replace(TINY, evaluation_rate=0.02)
    configs = [lab.cell(setting, "mtt").evaluation.config for setting in (TINY, fixed)]
    assert [(config.epochs, config.rate) for config in configs] == [(3, None), (3, 0.02)]
    assert lab.cell(TINY, "whole").evaluation.config.epochs == TINY.whole_epochs


def test_cells_on_other_networks_and_splits(lab):
    (wide,) = lab.cells([TINY], ["mtt"], networks=[NetworkConfig(width=6)], split="validation")
    assert wide.network == NetworkConfig(width=6)
    assert wide.evaluation.confusion.sum() == 2 * len(lab.data(TINY).validation)
    assert wide.origin("quick") == "quick profile, 1 set × 2 networks"


def test_snapshots_end_with_the_result(lab):
    iterations, accuracies = lab.snapshots(TINY, "iadd")
    assert iterations == [0, 1, 2, 3]
    assert accuracies.shape == (4, 2)
    assert torch.equal(accuracies[-1], lab.cell(TINY, "iadd").evaluation.accuracies)


def test_everything_is_checked_before_anything_is_computed(tmp_path):
    study = Study(tmp_path, device="cpu", threads=1, data_root=tmp_path, progress=False)
    refused = [
        ([TINY], ["mtt", "iad"], r"unknown method 'iad'.*did you mean 'iadd'"),
        ([TINY, replace(TINY, data_name="mnist")], ["mtt"], "MNIST was looked for in"),
        ([TINY], '["mtt"]', r"""methods is '\["mtt"\]'; it must be a list like"""),
        ([replace(TINY, seeds=3)], ["herding"], r"seeds is 3, but Herding takes .* teacher_count is 2"),
    ]
    for settings, methods, sentence in refused:
        assert_refused(sentence, study.cells, settings, methods)
    assert_refused("method 'Odd' needs either matching or sets", Method, "Odd")
    assert not stored(study)


def test_where_runs_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_RUNS", str(tmp_path / "mine"))
    assert runs_root() == tmp_path / "mine"
    assert Study(device="cpu", progress=False).runs == tmp_path / "mine"
    monkeypatch.delenv("IADD_RUNS")
    assert runs_root().parts[-2:] == ("iadd-lab", "runs")


def test_networks_that_had_not_learned_their_sets_are_noted(lab):
    wide = NetworkConfig(width=6)
    short = replace(TINY, evaluation_rate=1e-5, seeds=2)
    cells = lab.cells([short], ["random", "mtt", "whole"], networks=[None, wide])
    assert all(cell.evaluation.unfitted == len(cell.evaluation.losses) for cell in cells)
    (note,) = (note for note in notes(cells) if "had not learned" in note)
    # The whole set's few epochs are a choice.
    each = "Random 4 of 4, MTT 4 of 4"
    assert note.endswith(f"Digits, IPC 1, ConvNet: {each}; Digits, IPC 1, {wide.title}: {each}.")
    fine = lab.cells([replace(short, evaluation_rate=0.05, evaluation_epochs=300, seeds=1)], ["random"])
    assert all(cell.evaluation.unfitted == 0 for cell in fine)


def test_cells_carry_the_remark_of_their_data_and_leave_out_what_a_setting_does_without(lab, monkeypatch):
    monkeypatch.setitem(lab._data, TINY.data(), replace(lab.data(TINY), remark="lossy"))
    without = replace(TINY, gradient_matching_iterations=None, distribution_matching_iterations=None)
    cells = lab.cells([TINY, without], ["random", "dm"])
    expected = [(TINY, "random"), (TINY, "dm"), (without, "random")]
    assert [(cell.setting, cell.method) for cell in cells] == expected
    assert {cell.notes for cell in cells} == {("lossy",)}


def test_origins_count_what_was_made(lab):
    cells = lab.cells([replace(TINY, seeds=2)], ["random", "herding", "mtt", "whole"])
    counts = ["4 draws, a network on each", *["2 sets × 2 networks"] * 2, "2 networks, own number of epochs"]
    assert [cell.origin("quick") for cell in cells] == [f"quick profile, {count}" for count in counts]


def test_sets_are_kept_beside_a_table(lab, tmp_path, monkeypatch):
    cells = lab.cells([TINY], ["random", "mtt", "iadd"])
    assert lab.save_sets(cells, "", "table") == []
    paths = lab.save_sets(cells, tmp_path, "table")
    names = ["table_digits_ipc1_mtt.safetensors", "table_digits_ipc1_iadd.safetensors"]
    assert [path.name for path in paths] == names
    monkeypatch.setattr("iadd_lab.study.study._SMALL", 0)
    small = lab.save_sets(cells, tmp_path, "small")
    for path, whole, method in zip(small, paths, ("mtt", "iadd"), strict=True):
        assert path.stat().st_size < whole.stat().st_size
        for each in (path, whole):  # the same images, labels, alpha, preprocessing and data
            assert iadd_lab.load(each).distilled.fingerprint == lab.distilled(TINY, method).fingerprint


def test_a_run_that_diverges_has_a_cell_that_says_so(lab, monkeypatch):
    random, wild = lab.cells([replace(TINY, alpha_rate=1e6)], ["random", "iadd"])
    assert random.evaluation is not None
    assert (wild.method, wild.evaluation) == ("iadd", None)
    assert wild.diverged.startswith("alpha would fall")
    cell = lab.cell

    def diverges(*task, network, **options):
        if network == NetworkConfig(width=6):
            raise DivergenceError("the loss is nan")
        return cell(*task, network=network, **options)

    monkeypatch.setattr(lab, "cell", diverges)
    four, six = lab.cells([TINY], ["mtt"], networks=[NetworkConfig(width=width) for width in (4, 6)])
    assert (four.diverged, six.diverged) == ("", "the loss is nan")
    assert six.network == NetworkConfig(width=6)


class Shuffled:
    """A runner that ends tasks in another order, having sent them and their results through pickle."""

    def map(self, function, tasks):
        for number, task in reversed(list(enumerate(tasks))):
            function, task = pickle.loads(pickle.dumps((function, task)))
            try:
                yield number, pickle.loads(pickle.dumps(function(*task)))
            except Exception as error:
                yield number, error


def test_a_runner_elsewhere_gives_the_same_cells(lab, tmp_path):
    study = Study(tmp_path, device="cpu", threads=1, progress=False, runner=Shuffled())
    wild = replace(TINY, alpha_rate=1e6)
    both = [each.cells([TINY, wild], ["mtt", "random"]) for each in (study, lab)]
    for there, here in zip(*both, strict=True):
        assert (there.setting, there.method) == (here.setting, here.method)
        assert there.diverged[:20] == here.diverged[:20]
        if here.evaluation:
            assert torch.equal(there.evaluation.confusion, here.evaluation.confusion)
    assert len(stored(study, "teachers-*/teacher_*.safetensors")) == TINY.teacher_count


def test_results_change_only_with_their_version(lab):
    """Whoever changes what is computed must raise RESULT_VERSION, or cached results become stale."""
    assert RESULT_VERSION == 3
    result = lab.result(TINY, "iadd")
    start = result.history.snapshot_images[0]
    made = {name: (lab.distilled(TINY, name).images - start).norm().item() for name in ("iadd", "dsa", "dm")}
    made |= {"loss": result.history.loss[-1], "alpha": result.alpha}
    made |= {"weights": result.importance.std().item()}
    assert made == pytest.approx(GOLDEN, rel=1e-2)
