"""The study: every cell is computed once, shared where it can be, and never shown stale."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import iadd_lab
from iadd_lab.distillation.loop import Distillation
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.store.configs import RESULT_VERSION
from iadd_lab.study.settings import Setting
from iadd_lab.study.study import METHODS, Study, _study_of, runs_root
from iadd_lab.training.networks import NetworkConfig

TINY = Setting(
    data_name="digits",
    width=4,
    teacher_count=2,
    teacher_training_epochs=3,
    teacher_batch=256,
    iterations=3,
    student_steps=2,
    teacher_epochs=1,
    max_start_epoch=2,
    alpha=0.02,
    alpha_rate=1e-6,
    gradient_matching_iterations=2,
    distribution_matching_iterations=2,
    evaluation_networks=2,
    evaluation_epochs=3,
    whole_epochs=1,
)


# Of the tiny setting, measured once; see `test_results_change_only_with_their_version`.
GOLDEN = {
    "loss": 1.15771,
    "alpha": 0.0193855,
    "weights": 0.0147632,
    "iadd": 89.3348,
    "dsa": 0.89179,
    "dm": 2.72051,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Study:
    """A study whose runs all tests of this module share."""
    return Study(tmp_path_factory.mktemp("runs"), device="cpu", threads=1, progress=False)


@pytest.fixture
def counted(monkeypatch):
    """How often anything expensive was really started."""
    counts = {"train": 0, "distill": 0, "evaluate": 0}

    def count(owner, name, key):
        original = getattr(owner, name)

        def wrapper(*positional, **named):
            counts[key] += 1
            return original(*positional, **named)

        monkeypatch.setattr(owner, name, wrapper)

    count(sys.modules["iadd_lab.training.teachers"], "_train_one", "train")
    # The package's functions of these names hide the modules.
    count(Distillation, "advance", "distill")
    count(sys.modules["iadd_lab.evaluation.protocol"], "_Run", "evaluate")
    return counts


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_cell(lab, method):
    cell = lab.cell(TINY, method)
    assert cell.evaluation.confusion.shape == (2, 10, 10)
    assert cell.evaluation.confusion.sum() == 2 * len(lab.data(TINY).test)
    assert cell.evaluation.method == cell.title == METHODS[method].title
    made = lab.distilled(TINY, method)
    if method != "whole":
        assert made.labels.tolist() == list(range(10))


def test_a_cell_is_computed_once(lab, counted):
    first = lab.cell(TINY, "iadd")
    before = dict(counted)
    again = Study(lab.runs, device="cpu", threads=1, progress=False).cell(TINY, "iadd")
    assert counted == before
    assert torch.equal(first.evaluation.confusion, again.evaluation.confusion)


def test_teachers_are_shared_by_all_cells_that_can(lab, counted):
    lab.teachers(TINY)
    counted["train"] = 0  # the two of them may have been trained just now
    for other in (
        replace(TINY, iterations=2),
        replace(TINY, ipc=2),
        replace(TINY, seed=5),
        replace(TINY, teacher_count=1),
    ):
        lab.cell(other, "mtt")
    assert counted["train"] == 0
    more = replace(TINY, teacher_count=3)
    assert len(lab.teachers(more)) == 3
    assert counted["train"] == 1  # the third joins the two
    assert lab.teachers(more).folder == lab.teachers(TINY).folder
    assert len(lab.teachers(TINY)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 4},
        {"image_rate": 99.0},
        {"alpha": 0.021},
        {"student_steps": 3},
        {"weight_rate": 0.004},
        {"teacher_rate": 0.011},
        {"width": 5},
        {"train_limit": 500},
        {"seed": 1},
        {"teacher_count": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_field_is_a_new_run(lab, change):
    lab.result(TINY, "iadd")
    mine = {path.name for path in lab.runs.glob("digits-ipc1-iadd-*")}
    lab.result(replace(TINY, **change), "iadd")
    after = {path.name for path in lab.runs.glob("digits-ipc1-iadd-*")}
    assert len(after - mine) == 1


def test_what_is_made_with_less_precision_is_kept_apart(lab, tmp_path):
    less = Study(lab.runs, device="cpu", precision="bf16", threads=1, progress=False)
    names = [study._teacher_folder(TINY) for study in (lab, less)]
    names += [study.folder(TINY, "dm", 1) for study in (lab, less)]
    assert len(set(names)) == 4
    assert _study_of(less._options()).precision == "bf16"
    sets = lab.sets(TINY, "random")
    config = TINY.evaluation()
    before = len(list((lab.runs / "evaluations").iterdir()))
    lab.evaluate(sets, TINY, config)
    assert torch.get_float32_matmul_precision() == "highest"
    less.evaluate(sets, TINY, config)
    assert torch.get_float32_matmul_precision() == "medium"  # of whichever study works
    assert len(list((lab.runs / "evaluations").iterdir())) >= before + 1
    lab.evaluate(sets, TINY, config)
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_evaluation_goes_by_what_the_sets_hold(lab, counted):
    setting = replace(TINY, weight_rate=0.0)  # W stays at 1: the set is that of uniform matching
    uniform = lab.cell(TINY, "mtt").evaluation
    before = counted["evaluate"]
    learned = lab.cell(setting, "iadd").evaluation
    assert counted["evaluate"] == before
    assert torch.equal(uniform.confusion, learned.confusion)
    assert learned.method == METHODS["iadd"].title
    lab.cell(replace(TINY, evaluation_epochs=4), "mtt")
    assert counted["evaluate"] == before + 1


def test_seeds_are_pooled_and_differ(lab):
    two = lab.cell(replace(TINY, seeds=2), "iadd").evaluation
    first = lab.cell(TINY, "iadd").evaluation
    second = lab.cell(replace(TINY, seed=1), "iadd").evaluation
    assert torch.equal(two.confusion, torch.cat([first.confusion, second.confusion]))
    assert not torch.equal(first.confusion, second.confusion)


def test_random_images_are_drawn_anew_for_each_network(lab):
    one, other = lab.sets(TINY, "random")
    assert not torch.equal(one.images, other.images)


def test_the_whole_set_has_epochs_of_its_own(lab):
    assert lab.cell(TINY, "whole").evaluation.config.epochs == TINY.whole_epochs
    assert lab.cell(TINY, "mtt").evaluation.config.epochs == TINY.evaluation_epochs


def test_all_sets_are_trained_on_at_the_rate_that_is_given(lab):
    fixed = replace(TINY, evaluation_rate=0.02)
    assert lab.cell(fixed, "mtt").evaluation.config.rate == 0.02
    assert "epochs: at 0.02." in lab.notes([fixed])[1]
    assert lab.cell(TINY, "mtt").evaluation.config.rate is None
    assert "epochs: at the learned α on sets of MTT" in lab.notes([TINY])[1]


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


def test_everything_is_checked_before_anything_is_computed(tmp_path, counted):
    study = Study(tmp_path, device="cpu", threads=1, data_root=tmp_path, progress=False)
    with pytest.raises(InputError, match=r"unknown method 'iad'.*did you mean 'iadd'"):
        study.cells([TINY], ["mtt", "iad"])
    with pytest.raises(InputError, match="MNIST was looked for in"):
        study.cells([TINY, replace(TINY, data_name="mnist")], ["mtt"])
    assert not any(counted.values())


def test_where_runs_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_RUNS", str(tmp_path / "mine"))
    assert runs_root() == tmp_path / "mine"
    assert Study(device="cpu", progress=False).runs == tmp_path / "mine"
    monkeypatch.delenv("IADD_RUNS")
    assert runs_root().parts[-2:] == ("iadd-lab", "runs")


_CELL = """
import sys
from dataclasses import replace
from tests.test_study import TINY
from iadd_lab.study.study import Study
cell = Study(sys.argv[1], device="cpu", threads=1, progress=False).cell(replace(TINY, iterations=30), "iadd")
print(cell.evaluation.confusion.flatten().tolist())
"""


def test_two_processes_share_the_work(tmp_path):
    """Started together they end with equal results, and only one of them computed."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _CELL, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    (first, errors), (second, more) = (process.communicate(timeout=120) for process in started)
    assert errors + more == "" or "Traceback" not in errors + more
    *_, one = first.splitlines()
    *_, other = second.splitlines()
    assert one == other
    assert "waiting for another process" in first + second + errors + more
    assert len(list(tmp_path.glob("digits-ipc1-iadd-*"))) == 1


def test_networks_that_had_not_learned_their_sets_are_noted(lab):
    wide = NetworkConfig(width=6)
    short = replace(TINY, evaluation_rate=1e-5, seeds=2)
    cells = lab.cells([short], ["random", "mtt", "whole"], networks=[None, wide])
    assert all(cell.evaluation.unfitted == len(cell.evaluation.losses) for cell in cells)
    (note,) = (note for note in lab.notes([short]) if "had not learned" in note)
    # The whole set's few epochs are a choice.
    assert note.endswith(
        f"Digits, IPC 1, ConvNet: Random 4 of 4, MTT 4 of 4; Digits, IPC 1, {wide.title}: "
        "Random 4 of 4, MTT 4 of 4."
    )
    fine = replace(short, evaluation_rate=0.05, evaluation_epochs=300, seeds=1)
    assert all(cell.evaluation.unfitted == 0 for cell in lab.cells([fine], ["random"]))
    assert not any("had not learned" in note for note in lab.notes([fine]))


def test_notes_say_what_a_reader_must_know_once(lab, monkeypatch):
    lab = Study(lab.runs, device="cpu", threads=1, progress=False)  # one that has measured nothing
    other = replace(TINY, ipc=2, evaluation_epochs=7)
    spread, epochs = lab.notes([TINY, other])
    assert "over all networks of all sets" in spread
    assert "for 3 or 7 epochs" in epochs
    monkeypatch.setitem(lab._data, TINY.data(), replace(lab.data(TINY), remark="lossy"))
    assert lab.notes([TINY, other])[2:] == ("lossy",)


def test_methods_that_a_setting_does_without_are_left_out_and_said(lab):
    without = replace(TINY, gradient_matching_iterations=None, distribution_matching_iterations=None)
    cells = lab.cells([TINY, without], ["random", "dm"])
    assert [(cell.setting, cell.method) for cell in cells] == [
        *((TINY, "random"), (TINY, "dm")),
        (without, "random"),
    ]
    assert lab.notes([without])[-1] == "Left out of Digits, IPC 1: DC, DSA, DM."
    assert not any("Left out" in note for note in lab.notes([TINY]))


def test_origins_count_what_was_made(lab):
    two = replace(TINY, seeds=2)
    origins = {name: lab.cell(two, name).origin("quick") for name in ("random", "herding", "mtt", "whole")}
    assert origins == {
        "random": "quick profile, 4 draws, a network on each",
        "herding": "quick profile, 2 sets × 2 networks",
        "mtt": "quick profile, 2 sets × 2 networks",
        "whole": "quick profile, 2 networks, own number of epochs",
    }


def test_sets_are_kept_beside_a_table(lab, tmp_path, monkeypatch):
    cells = lab.cells([TINY], ["random", "mtt", "iadd"])
    assert lab.save_sets(cells, "", "table") == []
    paths = lab.save_sets(cells, tmp_path, "table")
    assert [path.name for path in paths] == [
        f"table_digits_ipc1_{name}.safetensors" for name in ("mtt", "iadd")
    ]
    for path, method in zip(paths, ("mtt", "iadd"), strict=True):
        assert torch.equal(iadd_lab.load(path).images, lab.distilled(TINY, method).images)
    monkeypatch.setattr("iadd_lab.study.study._SMALL", 0)
    small = lab.save_sets(cells, tmp_path, "small")
    assert len(small) == 2
    for path, whole in zip(small, paths, strict=True):
        assert path.stat().st_size < whole.stat().st_size
        made, expected = iadd_lab.load(path).distilled, iadd_lab.load(whole).distilled
        assert made.fingerprint == expected.fingerprint  # of images, labels, alpha, preprocessing and data


def test_a_run_that_diverges_is_left_out_and_said(lab):
    wild = replace(TINY, alpha_rate=1e6)
    cells = lab.cells([wild], ["random", "iadd"])
    assert [cell.method for cell in cells] == ["random"]
    assert lab.notes([wild])[-1].startswith("IADD diverged (Digits, IPC 1, ConvNet): alpha would fall")


def test_a_note_of_divergence_names_the_network_and_goes_with_it(lab, monkeypatch):
    networks = [NetworkConfig(width=width) for width in (4, 6)]

    def diverges(network):
        def evaluate(*arguments, **options):
            if options["network"] == network:
                raise DivergenceError("the loss is nan")
            return Study.cell(lab, *arguments, **options)

        return evaluate

    monkeypatch.setattr(lab, "cell", diverges(networks[1]))
    (cell,) = lab.cells([TINY], ["mtt"], networks=networks)
    assert cell.network == networks[0]
    assert lab.notes([TINY])[-1] == f"MTT diverged (Digits, IPC 1, {networks[1].title}): the loss is nan"
    monkeypatch.undo()
    assert len(lab.cells([TINY], ["mtt"], networks=networks)) == 2
    assert "diverged" not in lab.notes([TINY])[-1]


def test_methods_are_a_list(lab):
    with pytest.raises(InputError, match=r"""methods is '\["mtt"\]'; it must be a list, as in"""):
        lab.cells([TINY], '["mtt"]')


def test_herding_needs_a_teacher_for_each_seed(lab):
    with pytest.raises(InputError, match=r"seeds is 3, but Herding takes .* teacher_count is 2"):
        lab.cells([replace(TINY, seeds=3)], ["herding"])


def test_results_change_only_with_their_version(lab):
    """Whoever changes what is computed must raise RESULT_VERSION, or cached results become stale."""
    assert RESULT_VERSION == 1
    result = lab.result(TINY, "iadd")
    start = result.history.snapshot_images[0]
    made = {
        "loss": result.history.loss[-1],
        "alpha": result.alpha,
        "weights": result.importance.std().item(),
    } | {name: (lab.distilled(TINY, name).images - start).norm().item() for name in ("iadd", "dsa", "dm")}
    assert made == pytest.approx(GOLDEN, rel=1e-2)
