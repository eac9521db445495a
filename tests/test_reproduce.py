"""The batch: strict about parameters, and it never touches its inputs."""

from __future__ import annotations

import nbformat
import pytest

from iadd_lab.errors import InputError
from iadd_lab.reproduce import reproduce


def write_notebook(path, *sources, parameters='side = 2\nfigures_dir = ""'):
    """A notebook without outputs whose first cell is its parameters."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    # A kernel that does not exist here: the batch must force its own.
    metadata = {"kernelspec": {"name": "not-here", "display_name": "Not here", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """A folder of two notebooks, and one for the figures."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    touch = "import pathlib; pathlib.Path(figures_dir, 'good_a.png').touch()"
    write_notebook(notebooks / "good.ipynb", touch, "print(side * 3)")
    write_notebook(notebooks / "bad.ipynb", "raise ValueError('on purpose')")
    return {"notebooks": notebooks, "figures": tmp_path / "figures"}


def outputs(path):
    return [output.text for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def test_one_notebook_with_a_parameter(folders, capsys):
    source = folders["notebooks"] / "good.ipynb"
    before = source.read_bytes()
    assert reproduce(only=["good"], parameters={"side": "5"}, progress=False, **folders) == []
    assert source.read_bytes() == before
    made = folders["figures"] / "quick"
    assert outputs(made / "good.ipynb") == ["15\n"]
    report = (made / "README.md").read_text()
    assert "## [good](good.ipynb)" in report
    assert "![good_a](good_a.png)" in report
    assert str(folders["figures"]) not in (made / "good.ipynb").read_text()  # no path of this machine
    assert "The results lie in" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("2.5", 2.5), ("7", 7)])
def test_numbers_arrive_as_they_were_meant(folders, text, value):
    assert reproduce(only=["good"], parameters={"side": text}, progress=False, **folders) == []
    (found,) = outputs(folders["figures"] / "quick" / "good.ipynb")
    assert float(found) == 3 * value


def test_a_file_that_is_no_notebook_is_named_first(folders):
    (folders["notebooks"] / "broken.ipynb").write_text("{}")
    with pytest.raises(InputError, match=r"broken\.ipynb is not a notebook"):
        reproduce(progress=False, **folders)
    assert not folders["figures"].exists()


def test_a_failing_notebook_does_not_stop_the_others(folders, capsys):
    assert reproduce(progress=False, **folders) == ["bad"]
    assert "on purpose" in capsys.readouterr().out
    made = folders["figures"] / "quick"
    assert outputs(made / "good.ipynb") == ["6\n"]
    assert not (made / "bad.ipynb").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"profile": "quik"}, r"unknown profile 'quik'.*did you mean 'quick'"),
        ({"only": ["goood"]}, "unknown notebook 'goood'.*did you mean 'good'"),
        ({"parameters": {"sides": "3"}}, "parameter 'sides' is unknown to"),
        ({"parameters": {"side": "[1"}}, "parameter value .* can't be read"),
        ({"parameters": {"figures_dir": "x"}}, "figures_dir is set by the batch"),
        ({"profile": "cpu"}, "profile 'cpu' has no .*cpu.yaml"),
    ],
)
def test_what_is_unknown_stops_everything(folders, options, sentence):
    with pytest.raises(InputError, match=sentence):
        reproduce(progress=False, **options, **folders)
    assert not folders["figures"].exists()


def test_a_profile_sets_parameters_and_may_not_invent_any(folders):
    profiles = folders["notebooks"] / "profiles"
    profiles.mkdir()
    (profiles / "cpu.yaml").write_text("good: {side: 7}\n")
    assert reproduce(profile="cpu", only=["good"], progress=False, **folders) == []
    assert outputs(folders["figures"] / "cpu" / "good.ipynb") == ["21\n"]
    (profiles / "cpu.yaml").write_text("good: {sied: 7}\n")
    with pytest.raises(InputError, match=r"'sied'.*did you mean 'side'"):
        reproduce(profile="cpu", progress=False, **folders)


def test_an_empty_folder_says_where_to_run_from(tmp_path):
    with pytest.raises(InputError, match=r"there are no notebooks in .*: run from the project's folder"):
        reproduce(notebooks=tmp_path, figures=tmp_path / "figures", progress=False)
