"""The notebooks' own rules: parameters in one tagged cell, one kernel, short cells, no logic."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    """The code cells of one notebook."""
    notebook = nbformat.read(request.param, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"  # prose before code
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"quickstart"}


def test_parameters_are_literals_in_one_tagged_cell(cells):
    (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    for statement in ast.parse(parameters.source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
    assert "figures_dir" in parameters.source


def test_cells_are_short_and_hold_no_definitions(cells):
    for cell in cells:
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 25
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))


def test_only_stable_outputs_are_kept(cells):
    for cell in cells:
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            assert not cell.outputs
        for output in cell.outputs:
            assert output.output_type == "stream"
