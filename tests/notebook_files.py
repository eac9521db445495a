"""Notebooks that tests write, and what executed ones say."""

from pathlib import Path

import nbformat

PARAMETERS = 'side = 2\nfigures_dir = ""'


def write_notebook(path: Path, *sources: str, parameters: str = PARAMETERS, heading: str = "") -> Path:
    """A notebook without outputs whose first code cell is its parameters."""
    cells = [nbformat.v4.new_markdown_cell(f"Some words first.\n\n# {heading}")] if heading else []
    cells += [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    # A kernel that does not exist here: the batch must force its own.
    metadata = {"kernelspec": {"name": "not-here", "display_name": "Not here", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def outputs(path: Path) -> list[str]:
    """What each cell of an executed notebook printed."""
    return [
        output.get("text", "") for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])
    ]
