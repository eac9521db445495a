"""The plan: notebooks followed as they are, without computing, and what that predicts."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from iadd_lab.notebooks.costs import Costs, measure_probes, plan_costs, trajectory_bytes
from iadd_lab.notebooks.dry_run import Probe, follow
from iadd_lab.notebooks.plan_batch import PROFILES

from iadd_lab.notebooks import costs
from iadd_lab.notebooks.notebook import read_notebooks
from iadd_lab.notebooks.profiles import merge, read_profile
from iadd_lab.study.study import METHODS, Study
from iadd_lab.training.fast.compiling import flops
from tests.processes import complete, ended
from tests.test_readers import make_tiny
from tests.test_reproduce import write_notebook
from tests.test_study import TINY

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PARAMETERS = 'runs_dir = ""\nfigures_dir = ""\nmethods = ["mtt", "iadd"]'
CELLS = """
from dataclasses import replace
from iadd_lab.study import tables
from iadd_lab import plots
from iadd_lab.study.study import Study
from tests.test_study import TINY
lab = Study(runs_dir, device="cpu", threads=1)
cells = lab.cells([TINY], methods)
print(f"{plots.anything(cells) + 1:.3f}")
"""


def followed(path, **parameters):
    found = read_notebooks(path)
    return follow([(notebook, parameters) for notebook in found.values()])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_notebook_of_every_profile_is_followed_to_its_end(profile):
    found, stored = read_notebooks(NOTEBOOKS), read_profile(profile, NOTEBOOKS)
    run = follow([(notebook, merge(notebook, stored, {}, {})) for notebook in found.values()])
    assert run.unclear == ()
    assert {needed.kind for needed in run.needed} == {"teachers", "distillation", "evaluation", "engines"}
    assert all(needed.flops >= 0 and needed.disk >= 0 for needed in run.needed)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """The folder of a study that computed one cell of every method."""
    runs = tmp_path_factory.mktemp("runs")
    Study(runs, device="cpu", threads=1, progress=False).cells([TINY], METHODS)
    return runs


def test_the_plan_of_a_study_is_what_the_study_leaves(computed, tmp_path):
    """Teachers, sets and evaluations one by one, and the bytes of all within 10 %."""
    source = CELLS.replace("methods", "list(METHODS)").replace("import Study", "import METHODS, Study")
    write_notebook(tmp_path / "all.ipynb", source, parameters=PARAMETERS)
    run = followed(tmp_path)
    assert run.unclear == ()
    count = Counter()
    for needed in run.needed:
        count[needed.kind] += 1
    assert count["teachers"] == len(list(computed.glob("teachers-*")))
    assert count["distillation"] == len(list(computed.glob("digits-*")))
    assert count["evaluation"] == len(list(computed.glob("evaluations/*.safetensors")))
    stored = sum(path.stat().st_size for path in computed.rglob("*.safetensors"))
    assert sum(needed.disk for needed in run.needed) == pytest.approx(stored, rel=0.1)


def test_what_a_notebook_computes_follows_its_cells_and_parameters(tmp_path):
    path = write_notebook(tmp_path / "cells.ipynb", CELLS, parameters=PARAMETERS)

    def kinds(**parameters):
        return Counter(needed.kind for needed in followed(tmp_path, **parameters).needed)

    assert kinds() == {"teachers": 1, "distillation": 2, "evaluation": 2}
    assert kinds(methods=["iadd"]) == {"teachers": 1, "distillation": 1, "evaluation": 1}
    more = CELLS + "again = lab.cells([replace(TINY, iterations=5)], methods)\nlab.snapshots(TINY, 'mtt')"
    write_notebook(path, more, parameters=PARAMETERS)
    # Each of the snapshots is evaluated; the last is the result, which the cells had.
    assert kinds() == {"teachers": 1, "distillation": 4, "evaluation": 4 + 4}


def test_nothing_is_computed_or_changed(tmp_path):
    write_notebook(tmp_path / "cells.ipynb", CELLS, parameters=PARAMETERS)
    before = {name: dict(vars(module)) for name, module in sys.modules.items() if name.startswith("iadd_lab")}
    threads = torch.get_num_threads()
    followed(tmp_path)
    for name, held in before.items():
        assert all(vars(sys.modules[name])[key] is value for key, value in held.items())
    assert torch.get_num_threads() == threads
    assert [path.name for path in tmp_path.iterdir()] == ["cells.ipynb"]


def test_part_of_tiny_imagenet_is_planned_as_it_lies_there(monkeypatch, tmp_path):
    cells = CELLS.replace("TINY]", 'replace(TINY, data_name="tiny_imagenet", size=8)]')
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "cells.ipynb", cells, parameters=PARAMETERS)

    def classes():
        run = followed(tmp_path / "notebooks", methods=["mtt"])
        assert run.unclear == ()
        return {probe.shape.classes for needed in run.needed for probe, _ in needed.work}

    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    assert classes() == {200}
    make_tiny(tmp_path)
    assert classes() == {2}


def test_a_cell_that_fails_is_said(tmp_path):
    write_notebook(tmp_path / "cells.ipynb", "1 / 0", CELLS, parameters=PARAMETERS)
    run = followed(tmp_path)
    assert run.unclear == ("cells: cell 1 could not be followed (division by zero)",)
    assert len(run.needed) == 5


def test_operations_and_trajectories_are_those_of_the_formulas(tmp_path):
    write_notebook(tmp_path / "cells.ipynb", CELLS, parameters=PARAMETERS)
    run, lab = followed(tmp_path), Study(tmp_path / "runs", device="cpu", threads=1, progress=False)
    network = lab.teachers(TINY).network(0)
    teachers = next(needed for needed in run.needed if needed.kind == "teachers")
    images = len(lab.data(TINY).train)
    assert teachers.flops == 2 * 3 * 3.0 * images * flops(network, channels=1, size=8)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    sizes = trajectory_bytes(run)
    assert sizes["float32", "all epochs"] == 2 * 4 * parameters * 4
    assert sizes["float16", "used epochs"] == 2 * 3 * parameters * 2


def test_every_kind_of_piece_is_timed(tmp_path):
    source = CELLS.replace("methods", '["mtt", "dc", "dm"]')
    write_notebook(tmp_path / "cells.ipynb", source, parameters=PARAMETERS)
    probes = [*dict.fromkeys(probe for needed in followed(tmp_path).needed for probe, _ in needed.work)]
    seconds, base = measure_probes(probes, 1, "cpu", progress=False)
    assert {probe.kind for probe in probes} == {"training", "prediction", "distillation", "descent"}
    assert all(0 < value < 5 for value in seconds.values())
    assert base > 1e8


def test_large_pieces_are_timed_in_part(monkeypatch, tmp_path):
    write_notebook(tmp_path / "cells.ipynb", CELLS, parameters=PARAMETERS)
    probes = [*dict.fromkeys(probe for needed in followed(tmp_path).needed for probe, _ in needed.work)]
    wide = [replace(p, flops=p.flops * 1e4) for p in probes if p.kind in ("training", "prediction")]
    for probe in wide:
        seconds = costs.PROBES[probe.kind](probe, torch.device("cpu"))
        assert 0 < seconds < 60


def test_time_is_spent_by_so_many_notebooks_at_once(tmp_path):
    for name in ("a", "b"):
        write_notebook(tmp_path / f"{name}.ipynb", CELLS, parameters=PARAMETERS)
    run = followed(tmp_path)
    seconds = {probe: 1.0 for needed in run.needed for probe, _ in needed.work} | {Probe("notebook"): 10.0}
    found = Costs("quick", run, seconds, 0.0, 2, "cpu")
    spent = found.notebooks()
    assert spent["b"] == 10.0  # all of it was computed for the first
    assert found.wall() == spent["a"]
    assert replace(found, jobs=1).wall() == sum(spent.values())


def test_the_command_prints_tasks_time_disk_and_memory(tmp_path, monkeypatch):
    write_notebook(tmp_path / "cells.ipynb", CELLS, parameters=PARAMETERS)
    monkeypatch.setattr(costs, "measure_probes", lambda probes, *_, **__: (dict.fromkeys(probes, 0.5), 3e8))
    said = complete("plan --notebooks {} --jobs 2", tmp_path).stdout
    for part in (
        "teachers",
        "uniform, Digits 8 px, IPC 1",
        "time ",
        "disk ",
        "float16, used epochs",
        "memory ",
    ):
        assert part in said
    assert "no_such" in ended(2, "plan --notebooks {} -p no_such 1", tmp_path)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match=r"unknown profile 'slow'"):
        plan_costs(profile="slow")
