"""Executing the notebooks in one batch, and collecting what they make.

Each notebook is executed by a process of its own (see `execute`), several at once; on a Dask cluster, its
worker starts that. What a batch is to do is checked before anything starts, and what it leaves is a page that
shows everything.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from iadd_lab.data.sets import require_data
from iadd_lab.errors import check_like, check_whole, choose, require
from iadd_lab.notebooks.dask import DaskRunner, folders_of_images, open_runner
from iadd_lab.notebooks.notebook import CHANGE, Batch, Notebook, Record, files_of, read_record
from iadd_lab.notebooks.profiles import FIELDS, HOW_FIELDS, PROFILES, PageSettings, check_names, read_value
from iadd_lab.notebooks.report import SET_BY_BATCH, settings_mark, write_report
from iadd_lab.store.artefacts import check_folder, expanded, save_text
from iadd_lab.store.configs import fingerprint

# What a number or a picture may depend on.
_LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "pandas", "matplotlib", "seaborn", "papermill")
_ERROR_TAG = "papermill-error-cell-tag"  # papermill's own, on the cells in which it says what failed
_WIDGET = "application/vnd.jupyter.widget-view+json"
_NO_ROOM = "make room there, set TMPDIR to another folder, or raise the limit of open files (ulimit -n)"
_DIED = "its process died, perhaps for want of memory (then fewer --jobs help)"


@dataclass(frozen=True)
class Task:
    """One notebook to execute.

    Attributes:
        batch: that it is of.
        notebook: which is only read.
        parameters: to set in it.
        page: what it shows with them; None where the profile says nothing of it.
        inputs: fingerprint of all that decides what it makes.
    """

    batch: Batch
    notebook: Notebook
    parameters: dict[str, Any]
    page: PageSettings | None
    inputs: str = ""

    @property
    def name(self) -> str:
        return self.notebook.name

    @cached_property
    def record(self) -> Record | None:
        """What it left when it was executed before."""
        return read_record(self.batch.record(self.name))

    def is_up_to_date(self) -> bool:
        """Whether it was executed with the same inputs, and all that it made is still there unchanged."""
        made = self.record.made if self.record and self.record.inputs == self.inputs else {}
        paths = [path for path in map(self.batch.folder.joinpath, made) if path.is_file()]
        return f"{self.name}.ipynb" in made and made == _digests(self.batch.folder, paths)


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
    made_by = f"iadd-lab reproduce --profile {batch.rows.name}"
    require(bool(files), f"{batch.folder} is empty: run {made_by} first.")
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
    given = {name: value if value in PROFILES else expanded(value) for name, value in where.items() if value}
    batch = Batch(**given)
    among = batch.folder.exists() and batch.folder.samefile(batch.notebooks) and batch.found
    require(not among, f"{batch.folder} is the folder of the notebooks themselves: give other --figures.")
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
    for task in _chosen(batch_in(**where), only, parameters or {}):
        values = task.notebook.defaults | task.parameters
        own = {name: value for name, value in values.items() if value not in (None, {})}
        page = task.page and replace(task.page, own=task.page.own | own)
        pages[task.name] = page, task.notebook.source("code")
    return pages


def _chosen(batch: Batch, only: Sequence[str], parameters: Mapping[str, str]) -> list[Task]:
    """Each notebook with what it takes of the parameters, and what it then shows."""
    named = {name: choose("notebook", name, batch.found) for name in only} or batch.found
    chosen = [notebook for name, notebook in batch.found.items() if name in named]
    known = {name: None for notebook in chosen for name in notebook.defaults}
    known |= FIELDS if CHANGE in known else {}
    owner = chosen[0].name if len(chosen) == 1 else "these notebooks"
    for name in parameters:
        option = SET_BY_BATCH.get(name)
        require(option is None, f"{name} is set by the batch: use {option} instead of -p.")
        choose(f"parameter of {owner}", name, known)
    given = {name: read_value(text) for name, text in parameters.items()}
    return [_task(batch, notebook, given) for notebook in chosen]


def _task(batch: Batch, notebook: Notebook, given: Mapping[str, Any]) -> Task:
    """What a notebook takes of `given`: what it declares, and other fields of its settings in `change`."""
    own = {name: value for name, value in given.items() if name in notebook.defaults}
    usual = notebook.defaults | batch.rows.pages.get(notebook.name, {}).get("own", {})
    for name, value in own.items():
        check_like(name, value, usual[name])
    if CHANGE in notebook.defaults:
        change = check_names(own.get(CHANGE) or {}, FIELDS, "change")
        change = change | {name: value for name, value in given.items() if name in FIELDS and name not in own}
        own |= {CHANGE: change} if change else {}
    # As `Page` has it: what a notebook declares of its settings' fields goes below what its `change` says.
    knobs = {"data", "ipc", "methods", CHANGE, "iterations", "seeds", *HOW_FIELDS}
    values = {name: value for name, value in (notebook.defaults | own).items() if name in knobs}
    page = batch.rows.page(notebook.name, **values) if notebook.name in batch.rows.pages else None
    return Task(batch, notebook, own, page)


def plan_batch(batch: Batch, only: Sequence[str], parameters: Mapping[str, str]) -> list[Task]:
    """Check everything that can be checked before the first notebook starts; nothing is written.

    Args:
        batch: of which notebooks.
        only, parameters: as in `reproduce`.

    Raises:
        InputError: a notebook, parameter or data set is unknown or missing.
    """
    # Relative to the notebooks, where kernels run: the same wherever the project is one folder, for they are
    # among the inputs. Links are followed, as the operating system does at "../runs".
    here = {"figures_dir": batch.folder, "profile": batch.profile, "runs_dir": batch.runs}
    for name, path in here.items():
        if path not in PROFILES:
            here[name] = os.path.relpath(os.path.realpath(path), os.path.realpath(batch.notebooks))
    code, versions, tasks = _package_digest(), [sys.version, *map(version, _LIBRARIES)], []
    for task in _chosen(batch, only, parameters):
        notebook, page = task.notebook, task.page
        add = 'add figures_dir = "" to its cell tagged "parameters"'
        require("figures_dir" in notebook.defaults, f"{notebook.path} declares no figures_dir: {add}.")
        own = task.parameters | {name: value for name, value in here.items() if name in notebook.defaults}
        names = sorted({setting.data_name for setting in page.settings} if page else ())
        data = [(name, _files_below(require_data(name).resolve())) for name in names]
        inputs = fingerprint(notebook.content, own, page, code, versions, data)
        tasks.append(replace(task, parameters=own, inputs=inputs))
    return tasks


def _files_below(folder: Path) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file below `folder`."""
    found = [(str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


def _package_digest() -> str:
    """A fingerprint of the package's own modules and tables."""
    package = Path(__file__).parent.parent
    paths = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".csv"))
    return fingerprint(_digests(package, paths))


def _digests(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each of these files, by its path in `folder`."""
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in paths}


def _execute_all(tasks: list[Task], jobs: int, progress: bool, runner: DaskRunner | None) -> list[str]:
    """Execute `tasks`, so many `jobs` at once, and settle each; the names of those that failed."""
    known = {task.name: max(task.record.seconds, 0.1) for task in tasks if task.record}
    # How long each took when last executed; where that is unknown, the mean of the others, or 1.
    mean = sum(known.values()) / len(known) if known else 1.0
    expected = {task.name: known.get(task.name, mean) for task in tasks}
    failed, alone = [], len(tasks) == 1
    if jobs > 1:  # so that no long one is left to run alone at the end
        tasks = sorted(tasks, key=lambda task: -expected[task.name])
    batch, said = tasks[0].batch, "reproduce {} {}/{}".format
    bar = tqdm(
        desc=said(batch.rows.name, 0, len(tasks)),
        total=sum(expected.values()),
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        smoothing=0,  # notebooks differ too much for the last one to count most
        disable=not progress or alone,  # of a single notebook, papermill shows the cells
    )
    with tempfile.TemporaryFile(dir=batch.folder) as file:  # by the clock of that disk
        since = os.fstat(file.fileno()).st_mtime_ns
    # Copies lie where workers elsewhere can write as well, or on this machine's own disk.
    place = batch.record("").parent.absolute() if runner else None
    with tempfile.TemporaryDirectory(prefix="iadd-lab-", dir=place) as scratch, bar:
        orders = [_order(task, Path(scratch), bar=progress and alone) for task in tasks]
        ended = _run_on(runner, orders) if runner else _run_here(orders, jobs, bar)
        with contextlib.closing(ended):  # also when Ctrl-C comes while nobody waits
            for done, (number, (failure, seconds)) in enumerate(ended, 1):
                task, copy = tasks[number], Path(orders[number]["output_path"])
                bar.set_description_str(said(batch.rows.name, done, len(tasks)), refresh=False)
                bar.update(expected[task.name])
                if failure:
                    failed.append(task.name)
                    tqdm.write(f"{failure} (see {_keep_failure(task, copy, failure)})")
                else:
                    _keep_results(task, copy, seconds, since)
    return failed


def _order(task: Task, scratch: Path, *, bar: bool) -> dict[str, Any]:
    """What `execute` needs to know, for a process in any folder."""
    given = {"parameters": task.parameters, "progress_bar": bar}
    places = {"input_path": task.notebook.path.absolute(), "output_path": scratch / f"{task.name}.ipynb"}
    return given | {name: str(path) for name, path in places.items()}


def _execute(order: Mapping[str, Any], life_line: IO, cluster: str = "") -> tuple[str, float]:
    """Execute one notebook in a process that ends when `life_line`, a pipe to read from, is closed.

    Returns:
        One sentence that says what went wrong, empty after success, and how many seconds it took.
    """
    start = time.perf_counter()
    # A kernel runs in the notebooks' folder, from where a relative path means something else.
    environment = os.environ | folders_of_images() | ({"IADD_CLUSTER": cluster} if cluster else {})
    # -P: the modules beside the script must not hide others of their names.
    command = [sys.executable, "-P", str(Path(__file__).with_name("execute.py")), json.dumps(order)]
    # What a kernel's own child processes print reaches the notebook; here it would only fill the screen, or a
    # pipe that nobody reads, and all would wait.
    where = {"stdin": life_line, "stdout": subprocess.DEVNULL, "env": environment}
    code = subprocess.run(command, **where, check=False).returncode
    told = Path(order["output_path"]).with_suffix(".txt")
    failure = told.read_text(encoding="utf-8") if told.is_file() else ""
    if code:
        reason = _DIED if failure else f"nothing could be written in {told.parent}: {_NO_ROOM}"
        failure = f"{Path(order['input_path']).name} could not be executed: {reason}"
    return failure, time.perf_counter() - start


@contextlib.contextmanager
def _life_line() -> Iterator[IO]:
    """A pipe to read from that nobody ever writes into: that it is closed at the end is the news."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb"):
        yield reader


def _run_here(orders: Sequence[Mapping], jobs: int, bar: tqdm) -> Iterator[tuple[int, tuple[str, float]]]:
    """Each order's number and what `_execute` says of it; `bar` shows about once a second what runs."""
    with ThreadPoolExecutor(jobs) as pool, _life_line() as life_line:
        running = {pool.submit(_execute, order, life_line): n for n, order in enumerate(orders)}
        try:
            while running:
                under_way = [orders[n]["input_path"] for future, n in running.items() if future.running()]
                bar.set_postfix_str(", ".join(Path(source).stem for source in under_way))
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # before the life line ends those that run


def _run_on(runner: DaskRunner, orders: Sequence[Mapping]) -> Iterator[tuple[int, tuple[str, float]]]:
    tasks = [(order, runner.client.scheduler.address) for order in orders]
    for number, ended in runner.map(_execute_there, tasks, at_once=runner.workers):
        if isinstance(ended, Exception):
            ended = f"{Path(orders[number]['input_path']).name} could not be executed: {ended}", 0.0
        yield number, ended


def _execute_there(order: Mapping[str, Any], cluster: str) -> tuple[str, float]:
    """Execute a notebook on a worker; the cells of its tables become tasks of the same cluster."""
    from distributed import secede

    secede()  # it waits for them, and is no work of its worker's
    with _life_line() as life_line:
        return _execute(order, life_line, cluster)


def _keep_failure(task: Task, copy: Path, failure: str) -> Path:
    """Keep what was executed, in the file that is returned, and remove the record."""
    task.batch.record(task.name).unlink(missing_ok=True)
    path = task.batch.folder / f"{task.name}.failed.ipynb"
    try:
        text = tidy(copy, task, failure=failure)
    except (OSError, ValueError):  # nothing was executed, or its process died while it wrote
        text = tidy(task.notebook.path, task, failure=failure)
    save_text(path, text)
    return path


def _keep_results(task: Task, copy: Path, seconds: float, since: int) -> None:
    """Keep the executed notebook, and the record of all that it made after `since`, in nanoseconds."""
    folder = task.batch.folder
    save_text(folder / f"{task.name}.ipynb", tidy(copy, task))
    (folder / f"{task.name}.failed.ipynb").unlink(missing_ok=True)
    # Older ones were made by an earlier version of the notebook.
    files = files_of(task.name, task.batch.found, folder)
    made = _digests(folder, [path for path in files if path.stat().st_mtime_ns >= since])
    save_text(task.batch.record(task.name), Record(task.inputs, made, round(seconds, 2)).text)


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
    import nbformat  # takes a second

    content = nbformat.read(copy, as_version=4)
    metadata, cells = content.metadata, content.cells
    metadata.pop("widgets", None)
    given = metadata.get("papermill", {}).get("parameters", {})
    given = given | dict.fromkeys(given.keys() & {"figures_dir", "runs_dir"}, "")
    metadata |= {"papermill": {"parameters": given}, "iadd_lab": {"settings": settings_mark(task.page)}}
    if failure and not any(_ERROR_TAG in cell.metadata.get("tags", []) for cell in cells):
        cells.insert(0, nbformat.v4.new_markdown_cell(failure, metadata={"tags": [_ERROR_TAG]}))
    known = {cell["id"] for cell in task.notebook.whole["cells"] if "id" in cell}
    for place, cell in enumerate(cells):
        for timed in ("execution", "papermill"):
            cell.metadata.pop(timed, None)
        if cell.get("id") not in known:
            cell.id = f"made-{place}"
        if "injected-parameters" in cell.metadata.get("tags", []):  # papermill's own: one parameter a line
            cell.source = re.sub(r"(?m)^(figures_dir|runs_dir) = .*$", r'\1 = ""', cell.source)
        if cell.cell_type == "code" and not failure:
            cell.outputs = _results(cell.outputs)
    content.nbformat_minor = max(content.nbformat_minor, 5)  # the first in which cells have ids
    return nbformat.writes(content) + "\n"


def _results(outputs: list[Any]) -> list[Any]:
    """Outputs without progress bars; what a cell printed is one piece, in whatever pieces it came."""
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr" or _WIDGET in output.get("data", {}):
            continue
        if kept and output.output_type == "stream" == kept[-1].output_type:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept
