"""Executing the notebooks in one batch, and collecting what they make.

Each notebook is executed by a process of its own (see `execute`), several at once; on a Dask cluster, its
worker starts that. What a batch is to do is checked before anything starts, and what it leaves is a page that
shows everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from iadd_lab.data.sets import require_data
from iadd_lab.errors import check_whole, choose, require
from iadd_lab.notebooks.dask import DaskRunner, folders_of_images, open_runner
from iadd_lab.notebooks.notebook import CHANGE, Notebook, Record, files_of, read_record
from iadd_lab.notebooks.profiles import HOW_FIELDS, PROFILES, SETTING_FIELDS, PageSettings, read_value
from iadd_lab.notebooks.report import SET_BY_BATCH, Batch, settings_mark, write_report
from iadd_lab.store.artefacts import check_folder, save_text
from iadd_lab.store.configs import fingerprint

# What a number or a picture may depend on.
_LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "pandas", "matplotlib", "seaborn", "papermill")
_ERROR_TAG = "papermill-error-cell-tag"  # papermill's own, on the cells in which it says what failed
_WIDGET = "application/vnd.jupyter.widget-view+json"
_DIED = "its process died, perhaps for want of memory (then fewer --jobs help)"


@dataclass(frozen=True)
class Task:
    """One notebook to execute.

    Attributes:
        batch: that it is of.
        notebook: which is only read.
        parameters: to set in it.
        mark: fingerprint of the settings that it comes to.
        inputs: fingerprint of all that decides what it makes.
    """

    batch: Batch
    notebook: Notebook
    parameters: dict[str, Any]
    mark: str
    inputs: str

    @property
    def name(self) -> str:
        return self.notebook.name

    @property
    def record(self) -> Record | None:
        return read_record(self.batch.record(self.name))

    def file(self, ending: str) -> Path:
        return self.batch.folder / f"{self.name}{ending}"

    def is_up_to_date(self) -> bool:
        """Whether it was executed with the same inputs, and all that it made is still there unchanged."""
        record = self.record
        if record is None or record.inputs != self.inputs or f"{self.name}.ipynb" not in record.made:
            return False
        paths = {self.batch.folder / name: digest for name, digest in record.made.items()}
        return all(path.is_file() and _digest(path) == digest for path, digest in paths.items())


def reproduce(
    *,
    only: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
    jobs: int = 1,
    again: bool = False,
    progress: bool = True,
    cluster: str | None = None,
    **where: Any,
) -> list[str]:
    """Execute notebooks with papermill; inputs are never changed.

    What is up to date is left alone: its cells, parameters, data sets, this package and its libraries are
    what they were, and so are the files that it made.

    Args:
        only: names of the notebooks to execute; all if empty.
        parameters: by name, as text: what a notebook's parameters cell declares, or any other field of
            `Setting` or `Execution`, for every notebook that has settings; they win over the profile.
        jobs: how many notebooks to execute at once.
        again: execute also what is up to date.
        progress: whether to show a progress bar.
        cluster: where notebooks are executed, as many at once as it has workers, and the cells of their
            tables computed; see `open_runner`. None for this machine.
        where: `profile`, `notebooks`, `figures` and `runs`; see `Batch`.

    Returns:
        The names of the notebooks that failed; the others were executed all the same.

    Raises:
        InputError: a profile, notebook, parameter or data set is unknown or missing; nothing was executed.
    """
    check_whole("jobs", jobs, minimum=1)
    batch = batch_in(**where)
    tasks = plan_batch(batch, only, parameters or {})
    check_folder(batch.folder)
    check_folder(batch.record("").parent)
    due = [task for task in tasks if again or not task.is_up_to_date()]
    if len(due) < len(tasks):
        count = f"{len(tasks) - len(due)} of {len(tasks)} notebooks"
        print(f"{batch.rows.name}: {count} up to date; --again executes them all the same.")
    failed = []
    if due:
        with open_runner(cluster) as runner:
            failed = _execute_all(due, runner.workers if runner else jobs, progress, runner)
    print(f"The results lie in {batch.folder}: see {write_report(batch)}.")
    return [task.name for task in tasks if task.name in failed]


def keep(*, kept: Path = Path("figures"), **where: Any) -> Path:
    """Copy what a batch made to `kept`/`profile`, to be committed, and return that folder.

    Earlier files there of the same notebooks go; those of notebooks that were not executed stay.

    Args:
        kept: the folder that holds one for each profile.
        where: `profile`, `notebooks`, `figures` and `runs`; see `Batch`.

    Raises:
        InputError: the profile is unknown, or nothing was made for it.
    """
    batch = batch_in(**where)
    files = [path for path in sorted(batch.folder.glob("*")) if not path.name.endswith(".failed.ipynb")]
    profile = batch.rows.name
    require(bool(files), f"{batch.folder} is empty: run iadd-lab reproduce --profile {profile} first.")
    there = replace(batch, figures=Path(kept))
    if check_folder(there.folder).samefile(batch.folder):
        return there.folder
    for name in (path.stem for path in files if path.suffix == ".ipynb"):
        for path in files_of(name, batch.found, there.folder):
            path.unlink()
    for path in files:
        shutil.copyfile(path, there.folder / path.name)
    return write_report(there).parent


def batch_in(**where: Any) -> Batch:
    """The batch with these fields; folders may be text, and None stands for the usual one.

    Raises:
        InputError: the profile is unknown, a notebook can't be read, or results would land among notebooks.
    """
    given = {name: value if name == "profile" else Path(value) for name, value in where.items() if value}
    batch = Batch(**given)
    require(
        not (batch.folder.exists() and batch.folder.samefile(batch.notebooks) and batch.found),
        f"{batch.folder} is the folder of the notebooks themselves: choose another with --figures.",
    )
    return batch


def chosen_pages(
    only: Sequence[str] = (), parameters: Mapping[str, str] | None = None, **where: Any
) -> dict[str, tuple[PageSettings | None, str]]:
    """What `reproduce` with the same arguments would show in each notebook, and the source of its code cells.

    A notebook of which the profile says nothing shows None. What only a notebook knows, `own`, has the values
    of its parameters cell as well.

    Raises:
        InputError: a profile, notebook or parameter is unknown.
    """
    pages = {}
    for notebook, given, page in _chosen(batch_in(**where), only, parameters or {}):
        literals = {k: v for k, v in (notebook.defaults | given).items() if v not in (None, {})}
        source = "\n".join(source for kind, _, source in notebook.content if kind == "code")
        pages[notebook.name] = (replace(page, own=page.own | literals) if page else None), source
    return pages


def _chosen(
    batch: Batch, only: Sequence[str], parameters: Mapping[str, str]
) -> list[tuple[Notebook, dict[str, Any], PageSettings | None]]:
    """Each notebook with what it takes of the parameters, and what it then shows."""
    named = {name: choose("notebook", name, batch.found) for name in only} or batch.found
    chosen = [notebook for name, notebook in batch.found.items() if name in named]
    known = {name: None for notebook in chosen for name in notebook.defaults}
    known |= SETTING_FIELDS | HOW_FIELDS if CHANGE in known else {}
    for name in parameters:
        option = SET_BY_BATCH.get(name)
        require(option is None, f"{name} is set by the batch: use {option} instead of -p.")
        owner = chosen[0].name if len(chosen) == 1 else "these notebooks"
        choose(f"parameter of {owner}", name, known)
    given = {name: read_value(text) for name, text in parameters.items()}
    taken = [given_to(notebook, given) for notebook in chosen]
    return [(n, own, page_of(batch, n, own)) for n, own in zip(chosen, taken, strict=True)]


def given_to(notebook: Notebook, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of `given` the notebook takes: what it declares, and other fields of its settings in `change`."""
    own = {name: value for name, value in given.items() if name in notebook.defaults}
    if CHANGE not in notebook.defaults:
        return own
    change, fields = own.get(CHANGE) or {}, SETTING_FIELDS | HOW_FIELDS
    sentence = f"change is {change!r}; it must be a mapping, as in '{{teacher_epochs: 3}}'."
    require(isinstance(change, dict), sentence)
    change = change | {name: value for name, value in given.items() if name in fields and name not in own}
    return own | ({CHANGE: change} if change else {})


def page_of(batch: Batch, notebook: Notebook, own: Mapping[str, Any]) -> PageSettings | None:
    """What the notebook shows with its `own` parameters; None where the profile says nothing of it.

    Raises:
        InputError: a value is impossible, or a key of `change` unknown.
    """
    if notebook.name not in batch.rows.pages:
        return None
    values = {name: value for name, value in (notebook.defaults | own).items() if value is not None}
    rows = {name: values[name] for name in ("data", "ipc", "methods") if name in values}
    # As `Page` does it: what a notebook declares of its settings' fields goes below what its `change` says.
    change = {name: values[name] for name in ("iterations", "seeds", *HOW_FIELDS) if name in values}
    return batch.rows.page(notebook.name, **rows, change=change | values.get(CHANGE, {}))


def plan_batch(batch: Batch, only: Sequence[str], parameters: Mapping[str, str]) -> list[Task]:
    """Check everything that can be checked before the first notebook starts; nothing is written.

    Args:
        batch: of which notebooks.
        only, parameters: as in `reproduce`.

    Raises:
        InputError: a notebook, parameter or data set is unknown or missing.
    """
    profile = batch.profile if batch.profile in PROFILES else _seen_from(batch.notebooks, Path(batch.profile))
    here = {"figures_dir": _seen_from(batch.notebooks, batch.folder), "profile": profile}
    here["runs_dir"] = _seen_from(batch.notebooks, batch.runs)
    code, versions, tasks = _package_digest(), [sys.version, *map(version, _LIBRARIES)], []
    for notebook, own, page in _chosen(batch, only, parameters):
        add = 'add figures_dir = "" to its cell tagged "parameters"'
        require("figures_dir" in notebook.defaults, f"{notebook.path} declares no figures_dir: {add}.")
        own |= {name: value for name, value in here.items() if name in notebook.defaults}
        names = sorted({setting.data_name for setting in page.settings} if page else ())
        data = [(name, str(require_data(name).resolve())) for name in names]
        digests = [_tree_digest(Path(folder)) for _, folder in data]
        inputs = fingerprint(notebook.content, own, page, code, versions, data, digests)
        tasks.append(Task(batch, notebook, own, settings_mark(page), inputs))
    return tasks


def _seen_from(notebooks: Path, folder: Path) -> str:
    """`folder` relative to the notebooks: the same on every machine on which the project is one folder.

    It counts among the inputs, and a notebook may print it; as a parameter, `tidy` empties it.

    Links are followed, as the operating system does when a kernel in that folder opens "../runs".
    """
    folder, notebooks = Path(os.path.realpath(folder)), Path(os.path.realpath(notebooks))
    # On another drive there is no relative path.
    return os.path.relpath(folder, notebooks) if folder.drive == notebooks.drive else str(folder)


def _tree_digest(folder: Path) -> str:
    """SHA-256 over path, size and time of change of every file below `folder`."""
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            found = os.stat(os.path.join(parent, name))
            digest.update(f"{parent}/{name}:{found.st_size}:{found.st_mtime_ns};".encode())
    return digest.hexdigest()


def _package_digest() -> str:
    """A fingerprint of the package's own modules and tables."""
    package = Path(__file__).parent.parent
    paths = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".csv"))
    return fingerprint([[path.relative_to(package).as_posix(), _digest(path)] for path in paths])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _execute_all(tasks: list[Task], jobs: int, progress: bool, runner: DaskRunner | None) -> list[str]:
    """Execute `tasks`, so many `jobs` at once, and settle each; the names of those that failed."""
    expected, failed, done, alone = _expected_seconds(tasks), [], 0, len(tasks) == 1
    if jobs > 1:  # so that no long one is left to run alone at the end
        tasks = sorted(tasks, key=lambda task: -expected[task.name])
    bar = tqdm(
        total=sum(expected.values()),
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        smoothing=0,  # notebooks differ too much for the last one to count most
        disable=not progress or alone,  # of a single notebook, papermill shows the cells
    )

    def show(running: Sequence[int]) -> None:
        left = {tasks[number].name for number in running}
        bar.set_description_str(f"reproduce {tasks[0].batch.rows.name} {done}/{len(tasks)}", refresh=False)
        bar.set_postfix_str(", ".join(left))

    # Copies lie where workers elsewhere can write as well, or on this machine's own disk.
    place = tasks[0].batch.record("").parent.absolute() if runner else None
    with tempfile.TemporaryDirectory(prefix="iadd-lab-", dir=place) as scratch, bar:
        orders = [_order(task, Path(scratch), bar=progress and alone) for task in tasks]
        ended = _run_on(runner, orders) if runner else _run_here(orders, jobs, show)
        with contextlib.closing(ended):  # also when Ctrl-C comes while nobody waits
            for number, outcome in ended:
                task, done = tasks[number], done + 1
                bar.update(expected[task.name])
                _settle(task, Path(orders[number]["copy"]), outcome)
                if outcome.failure:
                    failed.append(task.name)
                    tqdm.write(f"{outcome.failure} (see {task.file('.failed.ipynb')})")
    return failed


def _expected_seconds(tasks: list[Task]) -> dict[str, float]:
    """How long each took when last executed; where that is unknown, the mean of the others, or 1."""
    known = {task.name: max(record.seconds, 0.1) for task in tasks if (record := task.record) is not None}
    mean = sum(known.values()) / len(known) if known else 1.0
    return {task.name: known.get(task.name, mean) for task in tasks}


def _order(task: Task, scratch: Path, *, bar: bool) -> dict[str, Any]:
    """What `execute` needs to know, for a process in any folder."""
    places = {"source": task.notebook.path.absolute(), "folder": task.batch.folder.absolute()}
    places |= {"copy": scratch / f"{task.name}.ipynb", "said": scratch / f"{task.name}.txt"}
    given = {"parameters": task.parameters, "bar": bar}
    return given | {name: str(path) for name, path in places.items()}


@dataclass(frozen=True)
class Outcome:
    """How an execution ended.

    Attributes:
        failure: one sentence that says what went wrong; empty after success.
        since: the time in ns that a file written to the folder of results got at the start, by its clock.
        seconds: how long it took.
    """

    failure: str
    since: int = 0
    seconds: float = 0.0


def _execute(order: Mapping[str, Any], life_line: int, cluster: str = "") -> Outcome:
    """Execute one notebook in a process that ends when `life_line`, a pipe to read from, is closed."""
    with tempfile.TemporaryFile(dir=order["folder"]) as file:
        since, start = os.fstat(file.fileno()).st_mtime_ns, time.perf_counter()
    # A kernel runs in the notebooks' folder, from where a relative path means something else.
    environment = os.environ | folders_of_images() | ({"IADD_CLUSTER": cluster} if cluster else {})
    # -P: the modules beside the script must not hide others of their names.
    command = [sys.executable, "-P", str(Path(__file__).with_name("execute.py")), json.dumps(order)]
    code = subprocess.run(command, stdin=life_line, env=environment, check=False).returncode
    died = f"{Path(order['source']).name} could not be executed: {_DIED}"
    failure = died if code else Path(order["said"]).read_text(encoding="utf-8")
    return Outcome(failure, since, time.perf_counter() - start)


@contextlib.contextmanager
def _life_line() -> Iterator[tuple[int, Callable[[], None]]]:
    """A pipe that nobody ever writes into, and what closes it: that is the news for who reads from it."""
    read_end, write_end = os.pipe()
    end = os.fdopen(write_end, "wb", buffering=0).close
    try:
        yield read_end, end
    finally:
        end()
        os.close(read_end)


def _run_here(
    orders: Sequence[Mapping[str, Any]], jobs: int, show: Callable[[Sequence[int]], None]
) -> Iterator[tuple[int, Outcome]]:
    """Each order's number and outcome when it has ended; `show` is told about once a second what runs."""
    pool = ThreadPoolExecutor(jobs)
    with _life_line() as (life_line, end):
        try:
            running = {pool.submit(_execute, order, life_line): n for n, order in enumerate(orders)}
            while running:
                show([number for future, number in running.items() if future.running()])
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            end()
            pool.shutdown()


def _run_on(runner: DaskRunner, orders: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Outcome]]:
    tasks = [(order, runner.address) for order in orders]
    for number, outcome in runner.map(_execute_there, tasks, at_once=runner.workers):
        if isinstance(outcome, Exception):
            outcome = Outcome(f"{Path(orders[number]['source']).name} could not be executed: {outcome}")
        yield number, outcome


def _execute_there(order: Mapping[str, Any], cluster: str) -> Outcome:
    """Execute a notebook on a worker; the cells of its tables become tasks of the same cluster."""
    from distributed import secede

    secede()  # it waits for them, and is no work of its worker's
    with _life_line() as (life_line, _):
        return _execute(order, life_line, cluster)


def _settle(task: Task, copy: Path, outcome: Outcome) -> None:
    """Move what was executed to where it belongs, and keep or remove the record."""
    executed, failed, record = task.file(".ipynb"), task.file(".failed.ipynb"), task.batch.record(task.name)
    if outcome.failure:
        record.unlink(missing_ok=True)
        try:
            save_text(failed, tidy(copy, task, failure=outcome.failure))
        except (OSError, ValueError):  # nothing was executed, or its process died while it wrote
            save_text(failed, tidy(task.notebook.path, task, failure=outcome.failure))
        return
    save_text(executed, tidy(copy, task))
    failed.unlink(missing_ok=True)
    files = files_of(task.name, task.batch.found, task.batch.folder)
    # Older ones were made by an earlier version of the notebook.
    made = {path.name: _digest(path) for path in files if path.stat().st_mtime_ns >= outcome.since}
    Record(task.inputs, made, round(outcome.seconds, 2)).save(record)


def tidy(copy: Path, task: Task, *, failure: str = "") -> str:
    """The executed notebook `copy` without times, random ids, progress and paths of this machine.

    Executed again, a notebook whose results are the same is the same file, wherever the batch's folders lay;
    and run by hand, it goes by its own defaults instead of folders that may be of another machine.

    Args:
        copy: as papermill wrote it.
        task: that was executed.
        failure: what to say at the top, unless papermill did; then all that was printed stays.

    Raises:
        ValueError: the copy is not a whole notebook.
    """
    content = json.loads(copy.read_text(encoding="utf-8"))
    metadata, cells = content["metadata"], content["cells"]
    metadata.pop("widgets", None)
    given = metadata.get("papermill", {}).get("parameters", {})
    folders = dict.fromkeys(given.keys() & {"figures_dir", "runs_dir"}, "")
    metadata |= {"papermill": {"parameters": given | folders}, "iadd_lab": {"settings": task.mark}}
    if failure and not any(_ERROR_TAG in cell["metadata"].get("tags", []) for cell in cells):
        cells.insert(0, {"cell_type": "markdown", "metadata": {"tags": [_ERROR_TAG]}, "source": [failure]})
    known = {cell.get("id") for cell in task.notebook.cells} - {None}
    for place, cell in enumerate(cells):
        for timed in ("execution", "papermill"):
            cell["metadata"].pop(timed, None)
        cell["id"] = cell.get("id") if cell.get("id") in known else f"made-{place}"
        if "injected-parameters" in cell["metadata"].get("tags", []):  # papermill's own: one parameter a line
            source = re.sub(r"(?m)^(figures_dir|runs_dir) = .*$", r'\1 = ""', "".join(cell["source"]))
            cell["source"] = source.splitlines(keepends=True)
        if cell["cell_type"] == "code" and not failure:
            cell["outputs"] = _results(cell["outputs"])
    content["nbformat_minor"] = max(content["nbformat_minor"], 5)  # the first in which cells have ids
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _results(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs without progress bars; what a cell printed is one piece, in whatever pieces it came."""
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if output.get("name") == "stderr" or _WIDGET in output.get("data", {}):
            continue
        if kept and output["output_type"] == "stream" == kept[-1]["output_type"]:
            text = "".join(kept[-1]["text"]) + "".join(output["text"])
            kept[-1]["text"] = text.splitlines(keepends=True)
        else:
            kept.append(output)
    return kept
