"""The batch: strict about parameters, never touches its inputs, and executes only what is not up to date."""

import json
import os
import shutil
import signal
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iadd_lab.notebooks import batch
from iadd_lab.notebooks.batch import batch_in, chosen_pages, keep, plan_batch, reproduce
from iadd_lab.notebooks.notebook import Record, files_of, notebook_folder, read_record
from iadd_lab.notebooks.report import write_report
from iadd_lab.store.artefacts import save_text
from tests.notebook_files import outputs, write_notebook
from tests.processes import PATIENCE, runs_on, start, wait_until
from tests.samples import assert_refused

TOUCH = "import pathlib; pathlib.Path(figures_dir, 'good_a.png').touch()"
BARS = """
import sys
from tqdm import tqdm
from tqdm.notebook import tqdm as widget
for number in widget(tqdm(range(3))):
    print(number, flush=True)
    print("progress", file=sys.stderr, flush=True)
"""
PAGE = 'profile = "quick"\nipc = None\nchange = {}\ndevice = "auto"\nruns_dir = figures_dir = ""'


@pytest.fixture
def folders(tmp_path):
    """A folder of one notebook, and one each for figures and runs."""
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "good.ipynb", TOUCH, "print(side * 3)")
    return {name: tmp_path / name for name in ("notebooks", "figures", "runs")}


@pytest.fixture
def without_kernels(monkeypatch):
    """Notebooks are only copied, and leave a picture each; one whose source says "raise" fails."""
    executed = []

    def execute(order, life_line, cluster=""):
        source = Path(order["input_path"])
        executed.append(source.stem)
        content = json.loads(source.read_text())
        content["metadata"]["papermill"] = {"parameters": order["parameters"]}
        Path(order["output_path"]).write_text(json.dumps(content))
        (source.parent / order["parameters"]["figures_dir"] / f"{source.stem}_a.png").touch()
        return "it failed" if "raise" in source.read_text() else "", 1.0 + len(source.stem)

    monkeypatch.setattr(batch, "_execute", execute)
    return executed


@pytest.fixture
def foreign_kernel(tmp_path, monkeypatch):
    """A kernel of the usual name that is another program, and a home that is none."""
    spec = {"argv": ["false"], "display_name": "Python 3 of long ago", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("HOME", "/dev/null")


def run(folders, **options):
    return reproduce(progress=False, **options, **folders)


def plan(folders, only=(), parameters=None, **options):
    """What each notebook would be given, by its name."""
    tasks = plan_batch(batch_in(**folders, **options), only, parameters or {})
    return {task.name: task for task in tasks}


def left(folders):
    """What the batch has left, and its folders themselves."""
    places = [folders["figures"], folders["runs"]]
    return [path for place in places for path in (place, *place.rglob("*")) if path.exists()]


# Executing -------------------------------------------------------------------------------------------------


def test_an_executed_notebook_holds_results_and_nothing_of_this_machine(
    folders, tmp_path, capsys, foreign_kernel
):
    """Nor times, progress or random ids: executed again, wherever that is, it is the same file."""
    cells = (TOUCH, BARS, "display(side, word)\nprint(f'{side} x')")
    parameters = 'side = 2\nword = ""\nprofile = "?"\nfigures_dir = ""\nruns_dir = ""'
    source = write_notebook(folders["notebooks"] / "good.ipynb", *cells, parameters=parameters)
    content = json.loads(source.read_text())
    for cell in content["cells"]:  # as older notebooks are: without ids
        del cell["id"]
    source.write_text(json.dumps(content | {"nbformat_minor": 4}))
    before = source.read_bytes()
    given = {"side": "5", "word": "runs_dir = 1"}
    assert run(folders, only=["good"], parameters=given) == []
    assert source.read_bytes() == before
    assert "The results lie in" in capsys.readouterr().out
    made = folders["figures"] / "quick"
    report = (made / "README.md").read_text()
    assert "## [good](good.ipynb)" in report
    assert "![good_a](good_a.png)" in report
    assert "Not the profile's own: executed with `side = 5`, `word = 'runs_dir = 1'`." in report
    first = (made / "good.ipynb").read_text()
    notebook = nbformat.reads(first, 4)
    nbformat.validate(notebook)
    printed = [[output.get("text") for output in cell.outputs] for cell in notebook.cells[2:]]
    assert printed == [[], ["0\n1\n2\n"], [None, None, "5 x\n"]]
    told = given | {"side": 5, "profile": "quick", "figures_dir": "", "runs_dir": ""}
    assert notebook.metadata["papermill"] == {"parameters": told}
    assert 'figures_dir = ""' in notebook.cells[1].source
    for word in (str(tmp_path), "../", "widget-view", "_time", "duration", '"iopub'):
        assert word not in first
    outside = tmp_path.with_name(f"{tmp_path.name}_lane")
    elsewhere = folders | {"figures": outside / "figures", "runs": outside / "runs"}
    assert run(elsewhere, parameters=given) == []
    assert (outside / "figures" / "quick" / "good.ipynb").read_text() == first
    capsys.readouterr()
    assert run(elsewhere, parameters=given) == []
    assert "1 of 1 notebooks up to date" in capsys.readouterr().out


def test_a_line_of_two_megabytes_is_an_output_like_others_and_a_reason_as_long_is_cut(folders, capfd):
    cells = ("print('x' * 2_000_000)", "import os\nos.write(1, b'z' * 2_000_000) and None")
    write_notebook(folders["notebooks"] / "good.ipynb", *cells, "raise ValueError('y' * 2_000_000)")
    assert run(folders) == ["good"]
    assert len(capfd.readouterr().out) < 2_000
    kept = nbformat.read(folders["figures"] / "quick" / "good.failed.ipynb", as_version=4)
    printed = "".join(out.text for cell in kept.cells for out in cell.get("outputs", ()) if "text" in out)
    assert printed.startswith("x" * 2_000_000 + "\n")  # kernels of tests do not catch the other line


def test_several_at_once_and_those_that_fail(folders, capsys):
    """Each failure costs its own notebook alone, and leaves a copy of what was executed till then."""
    failing = {
        "bad": ("raise ValueError('on purpose')", "failed in cell [4]: ValueError: on purpose"),
        "dying": ("import os\nos._exit(1)", "could not be executed: Kernel died"),
        # Its parent is the process of the notebook: the one must not take the others with it.
        "killer": ("import os\nos.kill(os.getppid(), 9)", "could not be executed: its process died"),
    }
    for name, (last, _) in failing.items():
        write_notebook(folders["notebooks"] / f"{name}.ipynb", "print('first')", last)
    write_notebook(folders["notebooks"] / "table2.ipynb", "print(side)")
    assert run(folders, jobs=2) == ["bad", "dying", "killer"]
    said, made = capsys.readouterr().out, folders["figures"] / "quick"
    copies = {f"{name}.failed.ipynb" for name in failing} | {"good.ipynb", "table2.ipynb"}
    assert {path.name for path in made.glob("*.ipynb")} == copies
    for name, (_, sentence) in failing.items():
        assert f"{name}.ipynb {sentence}" in said
        assert not (folders["runs"] / "reproduce" / "quick" / f"{name}.json").exists()
    assert "first\n" in outputs(made / "bad.failed.ipynb")
    assert "on purpose" in (made / "bad.failed.ipynb").read_text()
    for name in ("dying", "killer"):
        kept = nbformat.read(made / f"{name}.failed.ipynb", 4)
        assert kept.cells[0].source.startswith(f"{name}.ipynb could not be executed: ")
    for name in failing:
        assert f"[partly executed copy]({name}.failed.ipynb)" in (made / "README.md").read_text()


def test_what_failed_is_kept_until_it_succeeds(folders, without_kernels):
    made = folders["figures"] / "quick"
    assert run(folders) == []
    good = (made / "good.ipynb").read_bytes()
    write_notebook(folders["notebooks"] / "good.ipynb", "raise")
    for _ in range(2):  # it is not up to date because it failed
        assert run(folders) == ["good"]
    assert (made / "good.ipynb").read_bytes() == good
    assert "What is shown here may be of an earlier run." in (made / "README.md").read_text()
    write_notebook(folders["notebooks"] / "good.ipynb", "1")
    assert run(folders) == []
    assert not (made / "good.failed.ipynb").exists()
    assert "failed" not in (made / "README.md").read_text()


def test_only_what_changed_is_executed_again(folders, capsys, without_kernels, monkeypatch):
    write_notebook(folders["notebooks"] / "other.ipynb", parameters='size = 1\nfigures_dir = ""')
    made = folders["figures"] / "quick"

    def executed(**options):
        without_kernels.clear()
        assert run(folders, **options) == []
        return without_kernels

    assert executed(jobs=2) == ["good", "other"]
    path = folders["runs"] / "reproduce" / "quick" / "good.json"
    assert read_record(path).made.keys() == {"good.ipynb", "good_a.png"}
    assert executed() == []
    assert "2 of 2 notebooks up to date" in capsys.readouterr().out
    assert executed(again=True) == ["good", "other"]
    assert executed(again=True, jobs=2) == ["other", "good"]  # the longest first
    for change in (Path.unlink, lambda path: path.write_text("another picture")):
        change(made / "good_a.png")
        assert executed() == ["good"]
    assert executed(parameters={"size": "2"}) == ["other"]
    write_notebook(folders["notebooks"] / "good.ipynb", TOUCH, "print(side * 4)")
    assert executed(parameters={"size": "2"}) == ["good"]
    for text in ("", "[]", '{"record": "x"}'):  # damaged
        path.write_text(text)
        assert executed(parameters={"size": "2"}) == ["good"]
    monkeypatch.setattr(batch, "_package_digest", lambda: "other code")
    assert executed(parameters={"size": "2"}) == ["good", "other"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_batch_that_is_stopped_leaves_no_process_behind(folders, tmp_path, number):
    """Kernels note their own processes and those that started them; a last notebook never starts."""
    cells = (
        "import os, pathlib, time",
        f"folder = pathlib.Path({str(tmp_path)!r})",
        "for pid in (os.getpid(), os.getppid()):\n    (folder / f'{pid}.pid').touch()",
        f"time.sleep({PATIENCE})",
    )
    for name in ("good", "other", "third"):
        write_notebook(folders["notebooks"] / f"{name}.ipynb", *cells)
    places = [word for name, path in folders.items() for word in (f"--{name}", str(path))]
    process = start(["reproduce", "--jobs", "2", *places], said := tmp_path / "said.txt")
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 4 or process.poll() is not None)
    os.killpg(process.pid, number)  # as a terminal does
    assert process.wait(PATIENCE) == (130 if number == signal.SIGINT else -number), said.read_text()
    left = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(left) == 4
    wait_until(lambda: not any(map(runs_on, left)))
    assert not list((folders["figures"] / "quick").iterdir())


def test_relative_folders_mean_what_the_caller_sees(folders, tmp_path, monkeypatch):
    """A kernel runs in the folder of the notebooks, and finds runs, figures and data all the same."""
    check = (
        "import os\nfound = os.path.isdir(os.environ['IADD_DATA'] + '/cifar10')\n"
        "print(figures_dir, runs_dir, profile, found)"
    )
    write_notebook(folders["notebooks"] / "good.ipynb", check, parameters=PAGE)
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IADD_DATA", "data")
    assert reproduce(progress=False) == []
    found = outputs(Path("build", "figures", "quick", "good.ipynb"))
    assert found == ["../build/figures/quick ../runs quick True\n"]
    assert os.environ["IADD_DATA"] == "data"


# Parameters and inputs -------------------------------------------------------------------------------------


def test_a_parameter_goes_where_a_notebook_takes_it(folders):
    """As such where it declares it; else, of a field of the settings, into its `change`."""
    for name in ("quickstart", "figure2_concept"):
        more = "\nseeds = None" if name == "quickstart" else ""
        write_notebook(folders["notebooks"] / f"{name}.ipynb", parameters=PAGE + more)
    given = {"side": "[1e-5, a]", "ipc": "10", "seeds": "3", "weight_rate": "1e-3", "threads": "2"}
    found = {name: task.parameters for name, task in plan(folders, parameters=given).items()}
    here = {"profile": "quick", "figures_dir": "../figures/quick", "runs_dir": "../runs"}
    change = {"weight_rate": 1e-3, "threads": 2}
    assert found["quickstart"] == {"ipc": 10, "seeds": 3, "change": change} | here
    assert found["figure2_concept"] == {"ipc": 10, "change": change | {"seeds": 3}} | here
    assert found["good"] == {"side": [1e-5, "a"], "figures_dir": "../figures/quick"}
    pages = chosen_pages(parameters=given | {"change": "{alpha: 0.5}"}, **folders)
    assert pages["good"] == (None, f'side = 2\nfigures_dir = ""\n{TOUCH}\nprint(side * 3)')
    for name in ("quickstart", "figure2_concept"):
        (setting,) = pages[name][0].settings
        assert (setting.ipc, setting.seeds, setting.weight_rate, setting.alpha) == (10, 3, 1e-3, 0.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"profile": "quik"}, r"unknown profile 'quik'.*did you mean 'quick'"),
        ({"only": ["goood"]}, "unknown notebook 'goood'.*did you mean 'good'"),
        ({"only": ["good"], "parameters": {"sides": "3"}}, "parameter of good 'sides'.*did you mean 'side'"),
        ({"parameters": {"student_step": "3"}}, "of these notebooks 'student_step'.*mean 'student_steps'"),
        ({"only": ["good"], "parameters": {"student_steps": "3"}}, "unknown parameter of good"),
        ({"parameters": {"side": "[1"}}, "parameter value .* can't be read"),
        ({"parameters": {"side": "nan"}}, "side is 'nan'; it must be a finite number, as 2 is"),
        ({"parameters": {"side": "true"}}, "side is True; it must be a finite number"),
        ({"parameters": {"alpha": "nan"}}, "alpha is 'nan'; it must be a finite number"),
        ({"parameters": {"change": "{alpha: .inf}"}}, r"alpha is '\.inf'"),
        ({"parameters": {"figures_dir": "x"}}, "figures_dir is set by the batch: use --figures"),
        ({"parameters": {"profile": "x"}}, "profile is set by the batch: use --profile"),
        ({"parameters": {"change": "3"}}, "change is 3; it must map names to values"),
        ({"parameters": {"student_steps": "0"}}, "student_steps is 0; it must be a whole number"),
        ({"parameters": {"change": "{ipcs: 3}"}}, "unknown name in change: 'ipcs'.*did you mean 'ipc'"),
        ({"parameters": {"data_name": "cifar10"}}, "was looked for in .*cifar10, which is not there"),
        ({"parameters": {"data_name": "digist"}}, "unknown data set 'digist'.*did you mean 'digits'"),
        ({"jobs": 0}, "jobs is 0"),
        ({"cluster": "here"}, "expected local, local:N or tcp://HOST:PORT"),
    ],
)
def test_what_is_unknown_stops_everything(folders, tmp_path, monkeypatch, options, sentence):
    monkeypatch.setenv("IADD_DATA", str(tmp_path / "nothing"))
    write_notebook(folders["notebooks"] / "quickstart.ipynb", parameters=PAGE)
    assert_refused(sentence, run, folders, **options)
    assert not [path for path in left(folders) if "cluster" not in options or path.is_file()]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        *((text, r"bad\.ipynb is not a notebook") for text in ("{}", "[]", "no JSON", '{"cells": [{}]}')),
        ("side = 2", r"bad\.ipynb declares no figures_dir"),
        ("side = = 2", r"parameters cell of .*bad\.ipynb is not valid Python \(line 1\)"),
    ],
)
def test_a_notebook_that_can_not_work_stops_everything(folders, content, sentence):
    path = write_notebook(folders["notebooks"] / "bad.ipynb", parameters=content)
    if "side" not in content:
        path.write_text(content)
    assert_refused(sentence, run, folders)
    assert not left(folders)


def test_the_notebooks_are_no_place_for_results_and_must_be_there(folders, tmp_path):
    quick = folders["notebooks"].rename(tmp_path / "quick")
    before = (quick / "good.ipynb").read_bytes()
    among = folders | {"notebooks": quick, "figures": tmp_path}
    assert_refused("is the folder of the notebooks themselves", run, among)
    assert (quick / "good.ipynb").read_bytes() == before
    assert_refused(r"there are no notebooks in .*: run from the project's folder", run, folders)


def test_data_and_profile_count_among_the_inputs(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    own = tmp_path / "own.yaml"
    write_notebook(folders["notebooks"] / "quickstart.ipynb", parameters=PAGE)

    def inputs(ipc=1, other=1):
        rows = f"a: {{data_name: cifar10, ipc: {ipc}}}, b: {{data_name: cifar10, ipc: {other}}}"
        own.write_text(f"settings: {{{rows}}}\npages: {{quickstart: {{rows: [a], methods: [iadd]}}}}\n")
        (task,) = plan(folders, ["quickstart"], profile=str(own)).values()
        assert task.parameters["profile"] == "../own.yaml"
        assert task.parameters["figures_dir"] == "../figures/own"
        return task.inputs

    picture = tmp_path / "cifar10" / "train" / "cat" / "0.png"
    picture.parent.mkdir(parents=True)
    seen = [inputs()]
    assert inputs(other=7) == seen[0]  # of another page
    for write in (lambda: picture.write_bytes(b"a cat"), lambda: picture.write_bytes(b"another cat")):
        write()  # deep below a folder whose own time stays as it is
        seen.append(inputs())
    seen.append(inputs(ipc=2))
    assert len(set(seen)) == len(seen)


# What was made ---------------------------------------------------------------------------------------------


def report(folders, profile="quick"):
    (folders["figures"] / Path(profile).stem).mkdir(parents=True, exist_ok=True)
    return write_report(batch_in(profile=profile, **folders)).read_text()


def test_the_report_shows_everything_in_order(folders):
    names = ("zebra", "figure2", "table10", "table2", "table2_more", "quickstart")
    for name in names:
        write_notebook(folders["notebooks"] / f"{name}.ipynb", heading=f"All | about {name}")
    made = folders["figures"] / "quick"
    made.mkdir(parents=True)
    for name in names[1:]:
        (made / f"{name}.ipynb").write_text("")
    tables = ("table2.md", "table2_b.csv", "table2_b.md", "table2_c.csv", "differences.csv")
    for name in (*tables, "table2_10.png", "table2_9.png", "table2_more_x.png"):
        (made / name).write_text(f"# Heading of {name}\n\ntext\n")
    (made / "figure2.failed.ipynb").write_text("")
    for name in ("table10_new.png", "table10_old.png"):
        (made / name).touch()
    listed = dict.fromkeys(("table10.ipynb", "table10_new.png", "table10_lost.png"), "")
    save_text(folders["runs"] / "reproduce" / "quick" / "table10.json", Record("", listed, 1.0).text)
    found = report(folders)
    assert [name in found for name in ("_new.png", "_old.png", "_lost.png")] == [True, False, False]
    assert [line.replace("All | about ", "") for line in found.splitlines() if line.startswith("#")] == [
        "# Profile quick",
        "## [quickstart](quickstart.ipynb)",
        "## [table2](table2.ipynb)",
        "### Heading of table2.md",
        "### Heading of table2_b.md",
        "## [table2_more](table2_more.ipynb)",
        "## [table10](table10.ipynb)",
        "## [figure2](figure2.ipynb)",
    ]
    for line in (
        r"| [table2](#table2) | All \| about table2 | executed |",
        r"| zebra | All \| about zebra | not executed yet |",
        r"| [figure2](#figure2) | All \| about figure2 | **the last run failed** |",
        "The table above as [CSV](table2_b.csv).",
        "Measurements: [table2_c.csv](table2_c.csv).",
    ):
        assert line in found
    assert found.endswith("Also here: [differences.csv](differences.csv).\n")
    table2, more = (found.partition(f'<a id="{name}"></a>')[2] for name in ("table2", "table2_more"))
    assert table2.index("![table2_9](table2_9.png)") < table2.index("![table2_10](table2_10.png)")
    assert table2.index("table2_10.png") < table2.index('<a id="table2_more"></a>')
    assert "![table2_more_x](table2_more_x.png)" in more.partition("<a id")[0]
    stamp = (made / "README.md").stat().st_mtime_ns
    report(folders)
    assert (made / "README.md").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, ""),
        ({"device": "cuda", "threads": "3"}, ""),
        ({"alpha": "0.5", "ipc": "10"}, "`alpha = 0.5`, `ipc = 10`"),
    ],
)
def test_the_report_says_what_was_not_the_profiles(folders, without_kernels, parameters, said):
    """Also where there are no runs, as in a fresh clone: the executed copy itself says so."""
    write_notebook(folders["notebooks"] / "quickstart.ipynb", parameters=PAGE)
    assert run(folders, only=["quickstart"], parameters=parameters) == []
    shutil.rmtree(folders["runs"])
    found = [line for line in report(folders).splitlines() if "Not the profile's own" in line]
    assert found == ([f"Not the profile's own: executed with {said}."] if said else [])


def test_the_report_notices_that_the_profile_or_a_default_changed(folders, without_kernels, tmp_path):
    own, notebook = str(tmp_path / "own.yaml"), folders["notebooks"] / "quickstart.ipynb"
    text = "settings: {a: {data_name: digits, ipc: 1}}\npages: {quickstart: {rows: [a]}}\n"
    Path(own).write_text(text)
    write_notebook(notebook, parameters=f"{PAGE}\nneighbours = 8")
    assert run(folders, only=["quickstart"], parameters={"neighbours": "8"}, profile=own) == []
    assert "Not the profile's own" not in report(folders, own)
    Path(own).write_text(text.replace("ipc: 1", "ipc: 2"))
    assert "executed with other settings than the profile has now." in report(folders, own)
    write_notebook(notebook, parameters=f"{PAGE}\nneighbours = 9")
    assert "Not the profile's own: executed with `neighbours = 8`." in report(folders, own)


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"cells": [], "metadata": {"papermill": 3}}'])
def test_an_executed_copy_that_can_not_be_read_breaks_no_report(folders, text):
    (folders["figures"] / "quick").mkdir(parents=True)
    (folders["figures"] / "quick" / "good.ipynb").write_text(text)
    assert "## [good](good.ipynb)" in report(folders)


def test_what_was_made_is_kept_on_purpose(folders, without_kernels, tmp_path):
    missing = "is empty: run iadd-lab reproduce --profile quick first"
    assert_refused(missing, keep, kept=tmp_path / "kept", **folders)
    write_notebook(folders["notebooks"] / "other.ipynb")
    made, kept = folders["figures"] / "quick", tmp_path / "kept" / "quick"
    kept.mkdir(parents=True)
    for name in ("good.ipynb", "good_old.png", "other.ipynb", "other_a.png"):
        (kept / name).write_text("old")
    assert run(folders, only=["good"]) == []
    (made / "other.failed.ipynb").touch()
    assert keep(kept=tmp_path / "kept", **folders) == kept
    names = {path.name for path in kept.iterdir()}
    assert names == {"README.md", "good.ipynb", "good_a.png", "other.ipynb", "other_a.png"}
    assert (kept / "good.ipynb").read_bytes() == (made / "good.ipynb").read_bytes()
    assert "| [other](#other) | other | executed |" in (kept / "README.md").read_text()
    assert keep(kept=folders["figures"], **folders) == made  # where they lie already
    assert (made / "good_a.png").exists()


def test_notebooks_are_found_here_or_where_they_were_installed(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert notebook_folder() == Path("notebooks")
    monkeypatch.chdir(folders["notebooks"])
    assert (notebook_folder() / "table1_benchmarks.ipynb").is_file()


@given(st.lists(st.text("ab_.1", min_size=1, max_size=4), min_size=1, max_size=5, unique=True))
def test_every_file_belongs_to_one_notebook_at_most(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("files")
    for name in names:
        (folder / f"{name}_a.png").touch()
        (folder / f"{name}.md").touch()
    found = [path for name in names for path in files_of(name, names, folder)]
    assert len(found) == len(set(found))
    assert set(found) == set(folder.iterdir())
