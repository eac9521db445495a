"""Executing the notebooks in one batch, and collecting what they make."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from iadd_lab.data.cluster import IN_PROCESS, Engine
from iadd_lab.errors import check_whole
from iadd_lab.notebooks.plan_batch import Plan, Task, plan_batch
from iadd_lab.notebooks.record import is_up_to_date, read_record, write_record
from iadd_lab.notebooks.report import write_report
from iadd_lab.notebooks.run import Hooks, Outcome, execute_all, tidy
from iadd_lab.store.artefacts import check_folder, save_text


def reproduce(
    *,
    profile: str = "quick",
    only: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
    notebooks: Path = Path("notebooks"),
    figures: Path = Path("figures"),
    runs: Path = Path("runs"),
    jobs: int = 1,
    again: bool = False,
    progress: bool = True,
    engine: Engine = IN_PROCESS,
) -> list[str]:
    """Execute notebooks with papermill into `figures`/`profile`; inputs are never changed.

    What is up to date is left alone: its cells, parameters, data sets, this package and its libraries are
    what they were, and so are the files that it made.

    Args:
        profile: a key of `batch.plan.PROFILES`. `notebooks`/profiles/`profile`.yaml holds its parameters: one
            mapping per notebook, and one called common for every notebook that declares what is in it. The
            quick profile needs no file: it is the notebooks' own defaults.
        only: names of the notebooks to execute; all if empty.
        parameters: set in every notebook that declares them; they win over the profile.
        notebooks: folder of the notebooks.
        figures: each picture and executed notebook lands in `figures`/`profile`.
        runs: folder of what notebooks compute once (their runs_dir), and of the batch's records.
        jobs: how many notebooks to execute at once.
        again: execute also what is up to date.
        progress: whether to show progress bars.
        engine: where notebooks are executed, and the cells of their tables computed; on a cluster as many
            notebooks at once as there are workers. See `iadd_lab.data.cluster`.

    Returns:
        The names of the notebooks that failed; the others were executed all the same.

    Raises:
        InputError: a profile, notebook, parameter or data set is unknown or missing; nothing was executed.
    """
    check_whole("jobs", jobs, minimum=1)
    plan = plan_batch(
        profile=profile,
        only=only,
        parameters=parameters or {},
        notebooks=Path(notebooks),
        figures=Path(figures),
        runs=Path(runs),
    )
    check_folder(plan.folder)
    check_folder(plan.records)
    due = [task for task in plan.tasks if again or not is_up_to_date(task)]
    if len(due) < len(plan.tasks):
        count = f"{len(plan.tasks) - len(due)} of {len(plan.tasks)} notebooks"
        print(f"{profile}: {count} up to date; --again executes them all the same.")
    failed = _execute(plan, due, jobs, progress, engine) if due else []
    print(f"The results lie in {plan.folder}: see {write_report(plan)}.")
    return failed


def _execute(plan: Plan, tasks: list[Task], jobs: int, progress: bool, engine: Engine) -> list[str]:
    expected = _expected_seconds(tasks)
    if max(jobs, engine.workers) > 1:  # so that no long one is left to run alone at the end
        tasks = sorted(tasks, key=lambda task: -expected[task.name])
    failed = []
    with (
        tempfile.TemporaryDirectory(prefix="iadd-lab-", dir=_shared(plan, engine)) as scratch,
        _Progress(f"reproduce {plan.profile}", expected, shown=progress) as shown,
    ):

        def ended(task: Task, copy: Path, outcome: Outcome) -> None:
            shown.end(task)
            _settle(plan, task, copy, outcome)
            if outcome.failure:
                failed.append(task.name)
                tqdm.write(f"{outcome.failure} (see {task.failed_copy})")

        hooks = Hooks(started=shown.start, ended=ended, waiting=shown.refresh)
        execute_all(tasks, Path(scratch), hooks, jobs=jobs, progress=progress, engine=engine)
    return [task.name for task in plan.tasks if task.name in failed]


def _shared(plan: Plan, engine: Engine) -> Path | None:
    """Where workers elsewhere can write as well; None for this machine's own temporary folder."""
    return plan.records.absolute() if engine.address else None


def _expected_seconds(tasks: list[Task]) -> dict[str, float]:
    """How long each took when last executed; where that is unknown, the mean of the others, or 1."""
    records = {task.name: read_record(task.record) for task in tasks}
    known = {name: max(record.seconds, 0.1) for name, record in records.items() if record is not None}
    mean = sum(known.values()) / len(known) if known else 1.0
    return {name: known.get(name, mean) for name in records}


def _settle(plan: Plan, task: Task, copy: Path, outcome: Outcome) -> None:
    """Move what was executed to where it belongs, and keep or remove the record."""
    if not outcome.failure:
        save_text(task.executed, tidy(copy, task))
        task.failed_copy.unlink(missing_ok=True)
        write_record(task, names=plan.notebooks, since=outcome.since, seconds=outcome.seconds)
        return
    task.record.unlink(missing_ok=True)
    try:
        text = tidy(copy, task, failure=outcome.failure)
    except (OSError, ValueError):  # nothing was executed, or its process died while it wrote
        text = tidy(task.source, task, failure=outcome.failure)
    save_text(task.failed_copy, text)


class _Progress:
    """One bar over the batch, in expected seconds, so that the time left means something."""

    def __init__(self, title: str, expected: dict[str, float], *, shown: bool):
        self._title, self._expected = title, expected
        self._running: list[str] = []
        self._done = 0
        self._bar = tqdm(
            desc=f"{title} 0/{len(expected)}",
            total=sum(expected.values()),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            smoothing=0,  # notebooks differ too much for the last one to count most
            disable=not shown,
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self, task: Task) -> None:
        self._running.append(task.name)
        self._show()

    def end(self, task: Task) -> None:
        self._running.remove(task.name)
        self._done += 1
        self._bar.update(self._expected[task.name])
        self._show()

    def refresh(self) -> None:
        self._bar.refresh()

    def _show(self) -> None:
        self._bar.set_description_str(f"{self._title} {self._done}/{len(self._expected)}", refresh=False)
        self._bar.set_postfix_str(", ".join(self._running))
