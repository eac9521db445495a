"""The batch: strict about parameters, never touches its inputs, and executes only what is not up to date."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iadd_lab.notebooks.plan_batch import plan_batch
from iadd_lab.notebooks.record import Record, files_of, read_record, save_record
from iadd_lab.notebooks.run import tidy

from iadd_lab.errors import InputError
from iadd_lab.notebooks.batch import reproduce
from iadd_lab.notebooks.notebook import executed_parameters, natural_order
from iadd_lab.notebooks.profiles import read_given
from iadd_lab.notebooks.report import write_report

PLAIN = st.recursive(  # what may be a parameter; papermill writes an infinity as a call, which stays unknown
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
TOUCH = "import pathlib; pathlib.Path(figures_dir, 'good_a.png').touch()"


def write_notebook(path, *sources, parameters='side = 2\nfigures_dir = ""', heading=""):
    """A notebook without outputs whose first code cell is its parameters."""
    cells = [nbformat.v4.new_markdown_cell(f"Some words first.\n\n# {heading}")] if heading else []
    cells += [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    # A kernel that does not exist here: the batch must force its own.
    metadata = {"kernelspec": {"name": "not-here", "display_name": "Not here", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def write_profile(folders, text, name="cpu"):
    profiles = folders["notebooks"] / "profiles"
    profiles.mkdir(exist_ok=True)
    (profiles / f"{name}.yaml").write_text(text)


@pytest.fixture
def folders(tmp_path):
    """A folder of one notebook, and one each for figures and runs."""
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "good.ipynb", TOUCH, "print(side * 3)")
    return {name: tmp_path / name for name in ("notebooks", "figures", "runs")}


def run(folders, **options):
    return reproduce(progress=False, **options, **folders)


def plan(folders, profile="quick", **options):
    """What each notebook would be given, by its name."""
    given = {"only": (), "parameters": {}, **options}
    return {task.name: task.parameters for task in plan_batch(profile=profile, **given, **folders).tasks}


def outputs(path):
    return [output.text for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def nothing_was_done(folders):
    return not folders["figures"].exists() and not folders["runs"].exists()


def test_one_notebook_with_a_parameter(folders, capsys):
    source = folders["notebooks"] / "good.ipynb"
    before = source.read_bytes()
    assert run(folders, only=["good"], parameters={"side": "5"}) == []
    assert source.read_bytes() == before
    made = folders["figures"] / "quick"
    assert outputs(made / "good.ipynb") == ["15\n"]
    report = (made / "README.md").read_text()
    assert "## [good](good.ipynb)" in report
    assert "![good_a](good_a.png)" in report
    assert str(folders["figures"].parent) not in (made / "good.ipynb").read_text()  # no path of this machine
    assert "The results lie in" in capsys.readouterr().out


def test_executed_again_an_unchanged_notebook_is_the_same_file(folders):
    bar = "from tqdm import tqdm\nfor _ in tqdm(range(3)): pass"
    source = write_notebook(folders["notebooks"] / "good.ipynb", TOUCH, bar, "display(side)")
    content = json.loads(source.read_text())
    for cell in content["cells"]:  # as older notebooks are: without ids
        del cell["id"]
    source.write_text(json.dumps(content | {"nbformat_minor": 4}))
    assert run(folders) == []
    executed = folders["figures"] / "quick" / "good.ipynb"
    first = executed.read_bytes()
    assert run(folders, again=True) == []
    assert executed.read_bytes() == first
    assert b"3/3" in first  # the bar is there, without the time that it took
    nbformat.validate(nbformat.read(executed, 4))


def test_only_what_changed_is_executed_again(folders, capsys):
    write_notebook(
        folders["notebooks"] / "other.ipynb", "print(size)", parameters='size = 1\nfigures_dir = ""'
    )
    made = folders["figures"] / "quick"

    def executed(**options):
        before = {path.name: path.stat().st_mtime_ns for path in made.glob("*.ipynb")}
        assert run(folders, **options) == []
        return {
            path.name for path in made.glob("*.ipynb") if path.stat().st_mtime_ns != before.get(path.name)
        }

    assert executed() == {"good.ipynb", "other.ipynb"}
    assert read_record(folders["runs"] / "reproduce" / "quick" / "good.json").made.keys() == {
        "good.ipynb",
        "good_a.png",
    }
    capsys.readouterr()
    assert executed() == set()
    assert "2 of 2 notebooks up to date" in capsys.readouterr().out
    (made / "good_a.png").unlink()
    assert executed() == {"good.ipynb"}
    (made / "good_a.png").write_text("another picture")
    assert executed() == {"good.ipynb"}
    assert executed(parameters={"size": "2"}) == {"other.ipynb"}
    write_notebook(folders["notebooks"] / "good.ipynb", TOUCH, "print(side * 4)")
    assert executed(parameters={"size": "2"}) == {"good.ipynb"}


@pytest.mark.parametrize("damage", ["", "[]", '{"inputs": "x"}'])
def test_a_damaged_record_is_none(tmp_path, damage):
    (tmp_path / "good.json").write_text(damage)
    assert read_record(tmp_path / "good.json") is None


def test_code_and_data_count_among_the_inputs(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    parameters = 'data_names = ["digits", "cifar10"]\nfigures_dir = ""'
    write_notebook(folders["notebooks"] / "good.ipynb", parameters=parameters)

    def inputs():
        batch = plan_batch(profile="quick", only=(), parameters={}, **folders)
        return batch.tasks[0].inputs

    first = inputs()
    assert inputs() == first
    picture = tmp_path / "cifar10" / "train" / "cat" / "0.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"a cat")
    second = inputs()
    assert second != first
    picture.write_bytes(b"another cat")  # deep below a folder whose own time stays as it is
    assert inputs() not in (first, second)
    second = inputs()
    monkeypatch.setattr("iadd_lab.notebooks.plan_batch._package_digest", lambda: "other code")
    assert inputs() != second


def test_a_table_needs_the_data_of_the_columns_chosen_alone(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    parameters = 'data_name = ["digits", "cifar10"]\nonly_columns = None\nfigures_dir = ""'
    write_notebook(folders["notebooks"] / "good.ipynb", parameters=parameters)
    options = {"profile": "quick", "only": ["good"], **folders}
    for missing in ({}, {"only_columns": "[0, 1]"}, {"only_columns": "[5]"}):
        with pytest.raises(InputError, match="CIFAR-10 was looked for"):
            plan_batch(parameters=missing, **options)
    (task,) = plan_batch(parameters={"only_columns": "[0]"}, **options).tasks
    assert task.changed == {"only_columns": [0]}


def test_several_at_once(folders, capsys):
    for name in ("table1", "table2"):
        write_notebook(folders["notebooks"] / f"{name}.ipynb", "print(side)")
    # Its parent is the worker of the batch: the one must not take the others with it.
    write_notebook(folders["notebooks"] / "killer.ipynb", "import os\nos.kill(os.getppid(), 9)")
    assert run(folders, jobs=2) == ["killer"]
    assert "killer.ipynb could not be executed: its process died" in capsys.readouterr().out
    made = folders["figures"] / "quick"
    assert {path.name for path in made.glob("*.ipynb")} == {
        "good.ipynb",
        "table1.ipynb",
        "table2.ipynb",
        "killer.failed.ipynb",
    }
    assert run(folders, jobs=2, only=["good", "table1", "table2"]) == []
    assert "3 of 3 notebooks up to date" in capsys.readouterr().out


def test_what_failed_is_kept_until_it_succeeds(folders, capsys):
    def bad(*last):
        write_notebook(folders["notebooks"] / "bad.ipynb", "print('first')", *last)

    made = folders["figures"] / "quick"
    record = folders["runs"] / "reproduce" / "quick" / "bad.json"
    bad()
    assert run(folders) == []
    assert record.exists()
    bad("raise ValueError('on purpose')")
    assert run(folders) == ["bad"]
    assert "bad.ipynb failed in cell [4]: ValueError: on purpose" in capsys.readouterr().out
    assert not record.exists()
    assert outputs(made / "bad.ipynb") == ["first\n"]  # the good one of the last time
    kept = (made / "bad.failed.ipynb").read_text()
    assert "first" in kept
    assert "on purpose" in kept
    assert (
        "The last run failed: see the [partly executed copy](bad.failed.ipynb)"
        in (made / "README.md").read_text()
    )
    bad()
    assert run(folders) == []
    assert not (made / "bad.failed.ipynb").exists()
    assert "failed" not in (made / "README.md").read_text()


def test_a_kernel_that_dies_is_a_failure_with_a_copy(folders, capsys):
    write_notebook(folders["notebooks"] / "good.ipynb", "print('first')", "import os\nos._exit(1)")
    assert run(folders) == ["good"]
    assert "good.ipynb could not be executed: Kernel died" in capsys.readouterr().out
    kept = nbformat.read(folders["figures"] / "quick" / "good.failed.ipynb", 4)
    assert kept.cells[0].source.startswith("good.ipynb could not be executed: Kernel died")
    assert "first" in str(kept)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interruption_leaves_no_kernel_behind(folders, tmp_path, jobs):
    """Each kernel notes its process; once all of them run, they press Ctrl-C in ours."""
    cells = (
        "import os, pathlib, signal, time",
        f"folder = pathlib.Path({str(tmp_path)!r})\n(folder / f'{{os.getpid()}}.pid').touch()",
        f"while len(list(folder.glob('*.pid'))) < {jobs}: time.sleep(0.1)",
        f"if side == 2: os.kill({os.getpid()}, signal.SIGINT)",
        "time.sleep(600)",
    )
    write_notebook(folders["notebooks"] / "good.ipynb", *cells)
    write_notebook(folders["notebooks"] / "other.ipynb", *cells, parameters='side = 3\nfigures_dir = ""')
    with pytest.raises(KeyboardInterrupt):
        run(folders, jobs=jobs)
    kernels = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(kernels) == jobs
    end = time.monotonic() + 10  # a kernel that its worker had to leave ends itself within a second
    while any(map(is_alive, kernels)):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not list((folders["figures"] / "quick").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_batch_that_is_killed_leaves_no_process_behind(folders, tmp_path, number):
    """Kernels note their own processes and those of their workers."""
    cells = (
        "import os, pathlib, time",
        f"folder = pathlib.Path({str(tmp_path)!r})",
        "for pid in (os.getpid(), os.getppid()):\n    (folder / f'{pid}.pid').touch()",
        "time.sleep(600)",
    )
    write_notebook(folders["notebooks"] / "good.ipynb", *cells)
    write_notebook(folders["notebooks"] / "other.ipynb", *cells, parameters='side = 3\nfigures_dir = ""')
    options = [part for name, folder in folders.items() for part in (f"--{name}", str(folder))]
    command = [sys.executable, "-m", "iadd_lab", "reproduce", "--jobs", "2", *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as batch:
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("*.pid"))) < 4:
            assert batch.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        batch.send_signal(number)
    left = [int(path.stem) for path in tmp_path.glob("*.pid")]
    end = time.monotonic() + 20
    while any(map(is_alive, left)):
        assert time.monotonic() < end
        time.sleep(0.1)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_relative_folders_mean_what_the_caller_sees(folders, tmp_path, monkeypatch):
    """A kernel runs in the folder of the notebooks, and finds runs, figures and data all the same."""
    parameters = 'figures_dir = ""\nruns_dir = ""\nprofile = ""\ndata_name = "cifar10"'
    check = (
        "import os\nfound = os.path.isdir(os.environ['IADD_DATA'] + '/cifar10')\n"
        "print(figures_dir, runs_dir, profile, found)"
    )
    write_notebook(folders["notebooks"] / "good.ipynb", check, parameters=parameters)
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IADD_DATA", "data")
    assert reproduce(progress=False) == []
    found = outputs(Path("figures", "quick", "good.ipynb"))
    assert found == [f"{Path('../figures/quick')} {Path('../runs')} quick True\n"]
    assert os.environ["IADD_DATA"] == "data"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"profile": "quik"}, r"unknown profile 'quik'.*did you mean 'quick'"),
        ({"only": ["goood"]}, "unknown notebook 'goood'.*did you mean 'good'"),
        ({"parameters": {"sides": "3"}}, r"unknown parameter of good 'sides'.*did you mean 'side'"),
        ({"parameters": {"side": "[1"}}, "parameter value .* can't be read"),
        ({"parameters": {"side": "!!set {a, b}"}}, "parameter value .* can't be read"),
        ({"parameters": {"figures_dir": "x"}}, "figures_dir is set by the batch: use --figures"),
        ({"parameters": {"runs_dir": "x"}}, "runs_dir is set by the batch: use --runs"),
        ({"parameters": {"profile": "x"}}, "profile is set by the batch: use --profile"),
        ({"profile": "cpu"}, "profile 'cpu' has no .*cpu.yaml"),
        ({"jobs": 0}, "jobs is 0"),
    ],
)
def test_what_is_unknown_stops_everything(folders, options, sentence):
    with pytest.raises(InputError, match=sentence):
        run(folders, **options)
    assert nothing_was_done(folders)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ("side = 2", r"good\.ipynb declares no figures_dir"),
        ("side = = 2", r"parameters cell of .*good\.ipynb is not valid Python \(line 1\)"),
        (
            'figures_dir = ""\ndata_name = "cifar10"',
            "CIFAR-10 was looked for in .*cifar10, which is not there",
        ),
        ('figures_dir = ""\ndata_names = ["digist"]', "unknown data set 'digist'.*did you mean 'digits'"),
        ('figures_dir = ""\ndata_name = "image_folder"', "image_folder needs a folder"),
    ],
)
def test_a_notebook_that_can_not_work_stops_everything(folders, tmp_path, monkeypatch, parameters, sentence):
    monkeypatch.setenv("IADD_DATA", str(tmp_path / "nothing"))
    write_notebook(folders["notebooks"] / "table1.ipynb")
    write_notebook(folders["notebooks"] / "good.ipynb", parameters=parameters)
    with pytest.raises(InputError, match=sentence):
        run(folders)
    assert nothing_was_done(folders)


def test_a_data_set_is_looked_for_after_all_parameters_are_known(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_DATA", str(tmp_path / "nothing"))
    write_notebook(folders["notebooks"] / "good.ipynb", parameters='figures_dir = ""\ndata_name = "cifar10"')
    write_profile(folders, "good: {data_name: fashion_mnist}")
    with pytest.raises(InputError, match="Fashion-MNIST"):
        plan(folders, "cpu")
    assert plan(folders, "cpu", parameters={"data_name": "digits"})["good"]["data_name"] == "digits"


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"cells": [{"cell_type": "code"}]}'])
def test_a_file_that_is_no_notebook_is_named_first(folders, content):
    (folders["notebooks"] / "broken.ipynb").write_text(content)
    with pytest.raises(InputError, match=r"broken\.ipynb is not a notebook"):
        run(folders)
    assert nothing_was_done(folders)


def test_the_notebooks_are_no_place_for_results(folders):
    quick = folders["notebooks"].rename(folders["notebooks"].with_name("quick"))
    before = (quick / "good.ipynb").read_bytes()
    with pytest.raises(InputError, match="is the folder of the notebooks themselves"):
        reproduce(notebooks=quick, figures=quick.parent, runs=folders["runs"], progress=False)
    assert (quick / "good.ipynb").read_bytes() == before


def test_an_empty_folder_says_where_to_run_from(tmp_path):
    with pytest.raises(InputError, match=r"there are no notebooks in .*: run from the project's folder"):
        reproduce(notebooks=tmp_path, figures=tmp_path / "figures", progress=False)


def test_who_wins_among_default_common_profile_and_command_line(folders):
    parameters = 'a = b = c = 0\nd: int = 0\nfigures_dir = ""'
    write_notebook(folders["notebooks"] / "table1.ipynb", parameters=parameters)
    write_profile(
        folders,
        "_base: &base {a: 2, b: 2}\ncommon: {side: 1, a: 1, b: 1, c: 1}\ntable1: {<<: *base, b: 3}\ngood:\n",
    )
    shown = plan(folders, "cpu", parameters={"b": "4"})
    assert shown["table1"] == {"a": 2, "b": 4, "c": 1, "figures_dir": "../figures/cpu"}
    assert shown["good"] == {"side": 1, "figures_dir": "../figures/cpu"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("good: {sied: 7}", "'sied'.*did you mean 'side'"),
        ("goood: {side: 7}", "unknown notebook in profile cpu: 'goood'.*did you mean 'good'"),
        ("common: {sied: 7}", "unknown common parameter in profile cpu: 'sied'.*did you mean 'side'"),
        ("good: {figures_dir: x}", "figures_dir is set by the batch: take it out of"),
        ("good: 7", "good in .*cpu.yaml must be a mapping"),
        ("good: [", "cpu.yaml can't be read as YAML"),
        ("[good]", "cpu.yaml must be a mapping"),
        ("good: {side: !!binary aGk=}", "side in .*cpu.yaml must be a number"),
    ],
)
def test_a_profile_may_not_invent_anything(folders, text, sentence):
    write_profile(folders, text)
    with pytest.raises(InputError, match=sentence):
        run(folders, profile="cpu")
    assert nothing_was_done(folders)


def test_numbers_of_a_profile_arrive_as_they_were_meant(folders):
    write_profile(folders, 'good: {side: [1e-5, 7, "8", {deep: 1E3}, 2024-01-01, -.5e+1]}', name="quick")
    assert plan(folders)["good"]["side"] == [1e-5, 7, "8", {"deep": 1000.0}, "2024-01-01", -5.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("true", True), ("null", None), ("[1e-5, a]", [1e-5, "a"]), ("1:30x", "1:30x"), ("", "")],
)
def test_words_and_lists_of_the_command_line(text, value):
    assert read_given({"x": text}) == {"x": value}


@given(st.integers() | st.floats(allow_nan=False))
def test_numbers_of_the_command_line_arrive_as_they_were_meant(number):
    (found,) = read_given({"x": repr(number)}).values()
    assert found == number
    assert type(found) is type(number)


def test_the_report_shows_everything_in_order(folders):
    names = ("zebra", "figure2", "table10", "table2", "table2_more", "quickstart")
    for name in names:
        write_notebook(folders["notebooks"] / f"{name}.ipynb", heading=f"All | about {name}")
    made = folders["figures"] / "quick"
    made.mkdir(parents=True)
    for name in names[1:]:
        (made / f"{name}.ipynb").write_text("")
    for name in (
        "table2.md",
        "table2_b.csv",
        "table2_b.md",
        "table2_c.csv",
        "table2_10.png",
        "table2_9.png",
        "table2_more_x.png",
        "differences.csv",
    ):
        (made / name).write_text(f"# Heading of {name}\n\ntext\n")
    (made / "figure2.failed.ipynb").write_text("")
    batch = plan_batch(profile="quick", only=(), parameters={}, **folders)
    assert write_report(batch) == made / "README.md"
    report = (made / "README.md").read_text()
    assert [line.replace("All | about ", "") for line in report.splitlines() if line.startswith("#")] == [
        "# Profile quick",
        "## [quickstart](quickstart.ipynb)",
        "## [table2](table2.ipynb)",
        "### Heading of table2.md",
        "### Heading of table2_b.md",
        "## [table2_more](table2_more.ipynb)",
        "## [table10](table10.ipynb)",
        "## [figure2](figure2.ipynb)",
    ]
    assert r"| [table2](#table2) | All \| about table2 | executed |" in report
    assert r"| zebra | All \| about zebra | not executed yet |" in report
    assert r"| [figure2](#figure2) | All \| about figure2 | **the last run failed** |" in report
    assert "The table above as [CSV](table2_b.csv)." in report
    assert "Measurements: [table2_c.csv](table2_c.csv)." in report
    assert report.endswith("Also here: [differences.csv](differences.csv).\n")
    table2, more = (report.partition(f'<a id="{name}"></a>')[2] for name in ("table2", "table2_more"))
    assert table2.index("![table2_9](table2_9.png)") < table2.index("![table2_10](table2_10.png)")
    assert table2.index("table2_10.png") < table2.index('<a id="table2_more"></a>')
    assert "![table2_more_x](table2_more_x.png)" in more.partition("<a id")[0]
    stamp = (made / "README.md").stat().st_mtime_ns
    write_report(batch)
    assert (made / "README.md").stat().st_mtime_ns == stamp


def test_the_report_shows_what_the_record_lists(folders):
    made, records = folders["figures"] / "quick", folders["runs"] / "reproduce" / "quick"
    for folder in (made, records):
        folder.mkdir(parents=True)
    for name in ("good.ipynb", "good_new.png", "good_old.png"):
        (made / name).write_text("")
    listed = {"good.ipynb": "", "good_new.png": "", "good_lost.png": ""}
    save_record(records / "good.json", Record("", listed, 1.0, {}))
    report = write_report(plan_batch(profile="quick", only=(), parameters={}, **folders)).read_text()
    assert "good_new.png" in report
    assert "good_old.png" not in report
    assert "good_lost.png" not in report


@given(st.lists(st.text("ab_.1", min_size=1, max_size=4), min_size=1, max_size=5, unique=True))
def test_every_file_belongs_to_one_notebook_at_most(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("files")
    for name in names:
        (folder / f"{name}_a.png").touch()
        (folder / f"{name}.md").touch()
    found = [path for name in names for path in files_of(name, names, folder)]
    assert len(found) == len(set(found))
    assert set(found) == set(folder.iterdir())


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_names_are_sorted_by_their_numbers(first, second):
    in_order = natural_order(f"table{first}") < natural_order(f"table{second}")
    assert in_order == (first < second)


def test_a_changed_profile_does_not_pass_for_the_profile(folders):
    write_notebook(
        folders["notebooks"] / "good.ipynb",
        "print(profile)",
        parameters='side = 2\nprofile = "quick"\nfigures_dir = ""',
    )
    made = folders["figures"] / "quick" / "good.ipynb"
    assert reproduce(only=["good"], progress=False, **folders) == []
    assert outputs(made) == ["quick\n"]
    assert reproduce(only=["good"], parameters={"side": "3"}, progress=False, **folders) == []
    assert outputs(made) == ["changed quick\n"]
    assert "executed with `side = 3`" in (made.parent / "README.md").read_text()


def write_executed(path, parameters, injected):
    """A notebook as papermill leaves it: what it was given in a cell of its own below its defaults."""
    write_notebook(path, f"# Parameters\n{injected}", parameters=parameters)
    content = nbformat.read(path, 4)
    content.cells[1].metadata["tags"] = ["injected-parameters"]
    nbformat.write(content, path)


def report(folders, profile="cpu"):
    (folders["figures"] / profile).mkdir(parents=True, exist_ok=True)
    return write_report(plan_batch(profile=profile, only=(), parameters={}, **folders)).read_text()


def test_a_report_names_what_was_changed_also_where_there_are_no_runs(folders):
    write_profile(folders, "good: {side: 4}")
    assert run(folders, profile="cpu", parameters={"side": "5"}) == []
    page = folders["figures"] / "cpu" / "README.md"
    first = page.read_bytes()
    assert b"Not the profile's own: executed with `side = 5`." in first
    shutil.rmtree(folders["runs"])  # as in a fresh clone
    page.unlink()
    assert report(folders).encode() == first


@pytest.mark.parametrize(
    ("declared", "profile", "said"),
    [
        ("side = 2\nsize = [1, 2]", "{side: 3}", ""),
        ("side = 2\nsize = [1, 2]", "{side: 30, size: [1, 3]}", "`side = 3`, `size = [1, 2]`"),
        ("side = 2\nsize = [1, 2]", "{}", "`side = 3`"),  # the profile no longer says so
        ("side = 2\nsize = None", "{side: 3}", "`size = [1, 2]`"),  # another default since
        ("side = 2", "{side: 3}", ""),  # one that is gone says nothing
        ("side = 2\nsize = [1, 2]\nrate = 7", "{side: 3}", ""),  # declared since, as it was before
        ("side = 2\nsize = [1, 2]\nrate = 7", "{side: 3, rate: 7}", ""),
        ("side = 2\nsize = [1, 2]\nrate = 7", "{side: 3, rate: 8}", "no `rate`"),
        ("side = 2\nthreads = 1\ndevice = 'auto'", "{side: 3, threads: 2, device: cuda}", ""),
        ("side = 2\nlimit = 3", "{side: 3, limit: 4}", ""),  # what the copy computes is not known
    ],
)
def test_a_report_notices_what_changed_since_a_notebook_was_executed(folders, declared, profile, said):
    write_notebook(folders["notebooks"] / "good.ipynb", parameters=f"{declared}\nfigures_dir = profile = ''")
    write_profile(folders, f"good: {profile}")
    report(folders)
    write_executed(
        folders["figures"] / "cpu" / "good.ipynb",
        "side = 2\nsize = [1, 2]\nthreads = 3\ndevice = 'cpu'\nlimit = 0\nfigures_dir = profile = ''",
        "side = 3\nlimit = float('inf')\nfigures_dir = '../../lane'\nprofile = 'changed cpu'",
    )
    expected = [f"Not the profile's own: executed with {said}."] if said else []
    assert [line for line in report(folders).splitlines() if "Not the profile's own" in line] == expected


@pytest.mark.parametrize("source", ["side = = 3", "side = 3\0", f"side = {'-' * 100_000}3", "side = '\ud800"])
def test_an_executed_copy_that_can_not_be_parsed_breaks_no_report(folders, source):
    write_profile(folders, "good: {side: 4}")
    report(folders)
    executed = folders["figures"] / "cpu" / "good.ipynb"
    write_executed(executed, 'side = 2\nfigures_dir = ""', "side = 3")
    assert "`side = 3`" in report(folders)
    content = json.loads(executed.read_text())
    content["cells"][1]["source"] = source
    executed.write_text(json.dumps(content))
    assert "## [good](good.ipynb)" in report(folders)
    assert "Not the profile's own" not in report(folders)
    executed.write_text("[" * 100_000)
    assert "## [good](good.ipynb)" in report(folders)


@given(PLAIN)
def test_what_papermill_writes_is_read_as_it_was_meant(tmp_path_factory, value):
    from papermill.translators import PythonTranslator

    path = tmp_path_factory.mktemp("executed") / "good.ipynb"
    write_executed(path, "x = 0", PythonTranslator.codify({"x": value}))
    assert executed_parameters(path) == {"x": value}


def test_an_executed_notebook_does_not_say_where_the_batch_wrote(folders, tmp_path, capsys):
    """And so it is the same file wherever that was, and run by hand goes by its own defaults."""
    parameters = 'side = 2\nword = ""\nfigures_dir = ""\nruns_dir = ""'
    write_notebook(folders["notebooks"] / "good.ipynb", "print(side, word)", parameters=parameters)
    write_profile(folders, "good: {word: runs_dir = 1}", name="quick")
    outside = tmp_path.with_name(f"{tmp_path.name}_lane")
    elsewhere = folders | {"figures": outside / "figures", "runs": outside / "runs"}
    for where in (folders, elsewhere):
        assert run(where) == []
    inside, copy = (where["figures"] / "quick" / "good.ipynb" for where in (folders, elsewhere))
    text = copy.read_text()
    assert "../" not in text
    assert outside.name not in text
    assert text == inside.read_text()
    told = {"word": "runs_dir = 1", "figures_dir": "", "runs_dir": ""}
    assert executed_parameters(copy) == {"side": 2} | told
    assert json.loads(text)["metadata"]["papermill"]["parameters"] == told
    capsys.readouterr()
    assert run(elsewhere) == []
    assert "1 of 1 notebooks up to date" in capsys.readouterr().out
    (task,) = plan_batch(profile="quick", only=(), parameters={}, **elsewhere).tasks
    assert tidy(copy, task) == text
