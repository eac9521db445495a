"""The notebooks' own rules: parameters in one tagged cell, one kernel, short cells, no logic."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import nbformat
import pytest
import yaml

from iadd_lab.study.settings import Setting, columns

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = {
    "quickstart",
    "table1_benchmarks",
    "table2_cross_architecture",
    "table3_importance_ablation",
    "table4_covid19",
    "figure1_parameter_difference",
    "figure2_concept",
    "figure3_overview",
    "figure4_distilled_cifar10",
    "figure5_distilled_cifar100_tiny_imagenet",
    "figure6_learned_weights",
    "figure7_covid19_images",
    "figure8_convergence",
    "speed_and_memory",
    "your_data",
    "explore",
}
SET_BY_THE_BATCH = {"profile", "runs_dir", "figures_dir"}


def code_cells(path):
    """The code cells of one notebook."""
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def defaults(path):
    """The parameters of one notebook, which must be literals in one tagged cell."""
    (cell,) = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        (target,) = statement.targets
        values[target.id] = ast.literal_eval(statement.value)
    return values


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_every_table_and_figure_has_its_notebook():
    assert {path.stem for path in NOTEBOOKS} >= NAMES


def test_the_kernel_and_the_first_cell(notebook):
    content = nbformat.read(notebook, as_version=4)
    assert content.metadata.kernelspec.name == "python3"
    assert content.cells[0].cell_type == "markdown"  # prose before code
    assert content.cells[0].source.startswith("# ")


def test_parameters_are_literals_in_one_tagged_cell(notebook):
    values = defaults(notebook)
    assert values["figures_dir"] == ""
    assert values["runs_dir"] == ""  # so that it runs from any folder
    assert values.get("profile", "quick") == "quick"


def test_cells_are_short_and_hold_no_definitions(notebook):
    for cell in code_cells(notebook):
        if "parameters" not in cell.metadata.get("tags", []):
            handed_on = re.compile(r"    (\w+)=\1,")  # a parameter that only becomes part of a setting
            assert len([line for line in cell.source.splitlines() if not handed_on.fullmatch(line)]) <= 20
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))


def test_every_parameter_is_used(notebook):
    """A parameter without effect would be the worst kind: it is set, and nothing changes."""
    used = set()
    for cell in code_cells(notebook):
        if "parameters" not in cell.metadata.get("tags", []):
            used |= {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
    assert defaults(notebook).keys() <= used


def test_only_stable_outputs_are_kept(notebook):
    for cell in code_cells(notebook):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            assert not cell.outputs
        for output in cell.outputs:
            assert output.output_type == "stream"


@pytest.mark.parametrize("table", [path for path in NOTEBOOKS if path.stem.startswith("table")])
def test_a_table_names_the_command_for_one_of_its_cells(table):
    prose = "\n".join(cell.source for cell in nbformat.read(table, as_version=4).cells)
    (command,) = re.findall(r"One cell alone, computed anew: `([^`]+)`", prose)
    words = shlex.split(command)
    assert words[:2] == ["iadd-lab", "reproduce"]
    assert words[words.index("--only") + 1] == table.stem
    given = {words[n + 1]: yaml.safe_load(words[n + 2]) for n, word in enumerate(words) if word == "-p"}
    assert "methods" in given
    for name, value in given.items():
        default = defaults(table)[name]
        assert name == "only_columns" or set(value) <= set(default), name


def test_something_is_compared(notebook):
    assert any(cell.outputs for cell in code_cells(notebook))


def profile_settings(path, profile):
    """The settings that `path` works with on `profile`."""
    values = defaults(path)
    if profile != "quick":
        stored = yaml.safe_load((FOLDER / "profiles" / f"{profile}.yaml").read_text())
        assert path.stem in stored  # no notebook is left to quick values by oversight
        common = {name: value for name, value in stored["common"].items() if name in values}
        assert stored[path.stem].keys() <= values.keys() - SET_BY_THE_BATCH
        values |= common | stored[path.stem]
    if "data_name" not in values:
        return []  # it goes by the data that it is given, not by a column of a table
    fields = Setting.__dataclass_fields__
    return columns(**{name: value for name, value in values.items() if name in fields})


def used_epochs(setting):
    return setting.max_start_epoch - 1 + setting.teacher_epochs


@pytest.mark.parametrize("profile", ["quick", "cpu", "paper"])
def test_every_profile_gives_valid_settings(notebook, profile):
    for setting in profile_settings(notebook, profile):
        assert used_epochs(setting) <= setting.teacher_training_epochs


@pytest.mark.parametrize("profile", ["cpu", "paper"])
def test_teachers_are_trained_no_longer_than_any_notebook_uses(profile):
    settings = [setting for path in NOTEBOOKS for setting in profile_settings(path, profile)]
    for setting in settings:
        sharing = [other for other in settings if shared(other) == shared(setting)]
        assert setting.teacher_training_epochs == max(map(used_epochs, sharing)), setting.title


def shared(setting):
    return setting.data(), setting.teachers(), setting.teacher_count


def test_what_design_asks_of_the_paper_profile():
    """Design section 7, as listed by DC-BENCH for MTT."""
    stored = yaml.safe_load((FOLDER / "profiles" / "paper.yaml").read_text())
    common, table = stored["common"], stored["table1_benchmarks"]
    assert (common["teacher_count"], common["teacher_batch"], common["width"]) == (100, 256, 128)
    assert (common["evaluation_networks"], common["evaluation_epochs"]) == (5, 1000)
    names = ("data_name", "ipc", "student_steps", "teacher_epochs", "max_start_epoch", "image_rate")
    rows = list(
        zip(*(table[name] for name in (*names, "alpha_rate", "alpha", "preprocess", "batch")), strict=True)
    )
    assert table["iterations"] == 5000
    first = dict(zip((*names, "alpha_rate", "alpha", "preprocess"), rows[0], strict=False))
    assert {name: stored["quickstart"].get(name) for name in first} == first  # the quickstart is that column
    assert rows == [
        ("cifar10", 1, 50, 2, 2, 100, 1e-7, 0.01, "zca", None),
        ("cifar10", 10, 30, 2, 20, 100, 1e-5, 0.001, "zca", None),
        ("cifar10", 50, 30, 2, 40, 1000, 1e-5, 0.001, "standardise", None),
        ("cifar100", 1, 20, 3, 20, 1000, 1e-5, 0.01, "zca", None),
        ("cifar100", 10, 20, 2, 20, 1000, 1e-5, 0.01, "standardise", None),
        ("cifar100", 50, 80, 2, 40, 1000, 1e-5, 0.01, "zca", 125),
        ("tiny_imagenet", 1, 10, 2, 10, 1e4, 1e-4, 0.01, "standardise", None),
        ("tiny_imagenet", 10, 20, 2, 40, 1e4, 1e-4, 0.01, "standardise", 200),
        ("tiny_imagenet", 50, 20, 2, 40, 1e4, 1e-4, 0.01, "standardise", 300),
    ]  # fmt: skip
