"""The notebooks' own rules: literals in one tagged cell, a page on it, short cells, no logic."""

import ast
import re
import shlex
from pathlib import Path

import nbformat
import papermill
import pytest

from iadd_lab.notebooks.profiles import PROFILES, read_profile, read_value

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TABLES = [path for path in NOTEBOOKS if path.stem.startswith("table")]


def code_cells(path):
    """The code cells of one notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def parameters(path):
    """The parameters of one notebook, which must be literals in one tagged cell."""
    (cell,) = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        (target,) = statement.targets
        values[target.id] = ast.literal_eval(statement.value)
    return values


def names(path):
    """All names in the other code cells, with whether they are read or written."""
    cells = [cell for cell in code_cells(path) if "parameters" not in cell.metadata.get("tags", [])]
    return [node for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


@pytest.mark.parametrize("profile", PROFILES)
def test_every_table_and_figure_has_its_notebook_and_every_notebook_its_page(profile):
    found = {path.stem for path in NOTEBOOKS}
    assert read_profile(profile).pages.keys() == found
    assert sum(name.startswith("table") for name in found) == 4
    assert sum(name.startswith("figure") for name in found) == 8
    assert found >= {"quickstart", "explore", "speed_and_memory", "your_data"}


def test_the_kernel_and_the_first_cell(notebook):
    content = nbformat.read(notebook, as_version=4)
    assert content.metadata.kernelspec.name == "python3"
    assert content.cells[0].cell_type == "markdown"  # prose before code
    assert content.cells[0].source.startswith("# ")


def test_parameters_are_literals_in_one_tagged_cell(notebook):
    values = parameters(notebook)
    usual = {"figures_dir": "", "runs_dir": "", "profile": "quick", "device": "auto"}
    assert usual.items() <= values.items()  # it works from any folder
    assert notebook.stem == "your_data" or values["change"] == {}


def test_every_parameter_is_used_and_none_is_written(notebook):
    """One without effect would be the worst kind, and one that is written would be read again as if given."""
    declared = parameters(notebook).keys()
    assert declared <= {name.id for name in names(notebook) if isinstance(name.ctx, ast.Load)}
    assert not declared & {name.id for name in names(notebook) if isinstance(name.ctx, ast.Store)}


def test_the_page_is_made_in_the_cell_below_the_parameters(notebook):
    first, second = code_cells(notebook)[:2]
    assert first.metadata.tags == ["parameters"]
    (call,) = [node for node in ast.walk(ast.parse(second.source)) if isinstance(node, ast.Call)][:1]
    assert (call.func.id, call.args[0].value) == ("Page", notebook.stem)
    own = read_profile("quick").pages.get(notebook.stem, {}).get("own", {})
    assert own.keys() <= {each.arg for each in call.keywords}


def test_cells_are_short_and_hold_no_definitions(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 20
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))


def test_only_stable_outputs_are_kept_and_something_is_compared(notebook):
    cells = code_cells(notebook)
    for cell in cells:
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            assert not cell.outputs
        for output in cell.outputs:
            assert output.output_type == "stream"
    assert any(cell.outputs for cell in cells)


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_table_names_the_command_for_one_of_its_cells(table):
    prose = "\n".join(cell.source for cell in nbformat.read(table, as_version=4).cells)
    (command,) = re.findall(r"One cell alone, computed anew: `([^`]+)`", prose)
    words = shlex.split(command)
    assert words[:2] == ["iadd-lab", "reproduce"]
    assert words[words.index("--only") + 1] == table.stem
    given = {words[n + 1]: read_value(words[n + 2]) for n, word in enumerate(words) if word == "-p"}
    profile = read_profile(words[words.index("--profile") + 1])
    own = given.pop("other_networks", [])
    assert set(own) <= set(parameters(table).get("other_networks", []))
    one, all_of_it = profile.page(table.stem, **given), profile.page(table.stem)
    assert len(one.settings) == len(one.methods) == 1
    assert set(one.settings) <= set(all_of_it.settings)
    assert set(one.methods) <= set(all_of_it.methods)


def test_all_in_all_a_reader_has_little_to_read():
    """`student_steps` is the sample of a hyper-parameter that once stood everywhere."""
    source = "\n".join(cell.source for path in NOTEBOOKS for cell in code_cells(path))
    lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 620
    library = "\n".join(path.read_text() for path in FOLDER.parent.glob("iadd_lab/**/*.py"))
    assert (source + library).count("student_steps") <= 16
    profiles = [FOLDER.parent / "iadd_lab" / "notebooks" / f"{name}.yaml" for name in PROFILES]
    assert sum(len(path.read_text().splitlines()) for path in profiles) <= 200


def test_plain_papermill_changes_what_is_computed_or_is_refused(tmp_path, monkeypatch):
    """Given as `papermill -p` gives it, to the first cells of a notebook, which compute nothing yet."""
    monkeypatch.setenv("IADD_RUNS", str(tmp_path / "runs"))
    content = nbformat.read(FOLDER / "figure6_learned_weights.ipynb", as_version=4)
    content.cells = [cell for cell in content.cells if cell.cell_type == "code"][:2]
    nbformat.write(content, tmp_path / "first.ipynb")
    paths, options = (tmp_path / "first.ipynb", tmp_path / "made.ipynb"), {"kernel_name": "python3"}
    given = {"profile": "cpu", "ipc": 10, "change": "{teacher_epochs: 3, teacher_training_epochs: 5}"}
    made = papermill.execute_notebook(*paths, given, progress_bar=False, **options)
    printed = made.cells[-1].outputs[0].text
    assert "changed cpu profile\nCIFAR-10, IPC 10: " in printed
    assert "teacher_epochs 3" in printed
    assert "changed: ipc = 10, teacher_epochs = 3, teacher_training_epochs = 5" in printed
    with pytest.raises(papermill.PapermillExecutionError, match="InputError") as error:
        papermill.execute_notebook(*paths, {"change": "{studentsteps: 5}"}, progress_bar=False, **options)
    assert "did you mean 'student_steps'?" in error.value.evalue
