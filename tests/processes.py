"""Processes for tests: forked from one that has imported everything, and waited for without a clock."""

import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors import safe_open
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm import tqdm

from iadd_lab import cli
from iadd_lab.__main__ import main

PATIENCE = 600  # seconds after which something hangs, however busy the machine is
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "tests.test_kill", "sklearn.datasets", "torch._dynamo"])


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def invoke(words: str | list[str], *given: object, **paths: object) -> int:
    """The exit code of `iadd-lab` in this process; {} and {name} in the words stand for paths."""
    if isinstance(words, str):
        pieces = iter(given)
        words = [str(next(pieces)) if word == "{}" else word.format(**paths) for word in words.split()]
    try:
        return cli.run(words)
    except SystemExit as ended:
        return ended.code or 0


def run(words: str | list[str], *given: object, **paths: object) -> Done:
    """`iadd-lab` in this process, and what it says."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = invoke(words, *given, **paths)
    return Done(code, out.getvalue(), err.getvalue())


def complete(words: str | list[str], *given: object, **paths: object) -> Done:
    """`iadd-lab`, which must end well."""
    done = run(words, *given, **paths)
    assert done.code == 0, done
    return done


def ended(code: int, words: str | list[str], *given: object, **paths: object) -> str:
    """The one sentence with which `iadd-lab` ends: it was stopped (1), or refused bad input (2)."""
    done = run(words, *given, **paths)
    assert done.code == code, done
    assert "Traceback" not in done.stdout + done.stderr
    begin = {1: "stopped: ", 2: "error: "}[code]
    (line,) = (line for line in done.stderr.splitlines() if line.startswith(begin))
    return line


def fork(function: Callable, *arguments: object, output: Path) -> multiprocessing.Process:
    """A process that calls the function, in a group of its own as in a terminal; it prints into `output`."""
    process = FORKS.Process(target=_forked, args=(function, arguments, output), daemon=True)
    process.start()
    return process


def _forked(function: Callable, arguments: tuple, output: Path) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own, between processes, is left to the system by a kill
    function(*arguments)


def held_command(words: list[str], step: int, place: Path) -> None:
    """`iadd-lab`, to be forked: it reaches that optimiser step, and goes on when somebody lets it."""
    steps = itertools.count(1)

    def hold(*_) -> None:
        if next(steps) == step:
            (place / "reached").touch()
            wait_until((place / "go").exists)

    register_optimizer_step_post_hook(hold)
    sys.argv[1:] = words
    main()


def start(words: list[str], output: Path) -> subprocess.Popen:
    """`python -m iadd_lab` in a process group of its own, as a terminal has it."""
    with output.open("w") as file:
        words = [sys.executable, "-m", "iadd_lab", *words]
        return subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)


def exit_code(process: subprocess.Popen | multiprocessing.Process) -> int | None:
    """How it ended, which is waited for."""
    if isinstance(process, subprocess.Popen):
        return process.wait(PATIENCE)
    process.join(PATIENCE)
    return process.exitcode


def check_stopped(
    process: subprocess.Popen | multiprocessing.Process, output: Path, number: int = signal.SIGINT
) -> str:
    """The line in which a command that was interrupted, by default by Ctrl-C, says how to go on."""
    assert exit_code(process) == 128 + number, output.read_text()
    assert "Traceback" not in output.read_text()
    lines = re.split(r"[\r\n]", output.read_text())
    (said,) = (line for line in lines if line.startswith("stopped: "))
    return said


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what must happen some time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def says(output: Path, pattern: str) -> Callable[[], bool]:
    """The condition that a process has printed it."""
    return lambda: output.exists() and re.search(pattern, output.read_text()) is not None


def runs_on(pid: int) -> bool:
    """Whether the process still runs; one that nobody has asked for its exit code yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# What they leave -------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, tuple]:
    """Text and tensors of every artefact; not how long its iterations took."""
    found = {}
    for path in sorted(folder.rglob("[!.]*.safetensors")):
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["iadd_lab"])
            names = sorted(set(file.keys()) - {"history/seconds"})
            tensors = {name: file.get_tensor(name).numpy().tobytes() for name in names}
        found[str(path.relative_to(folder))] = (header["content"], tensors)
    return found


def spare(folder: Path) -> list[str]:
    """Checkpoints and locks, which nobody needs when all has ended."""
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    return [
        name for name in names if name.endswith(".lock") or re.match(r"[^.].*checkpoint|checkpoint", name)
    ]


def temporary(folder: Path) -> list[str]:
    """What was being written when it was killed; `iadd-lab runs prune` deletes it."""
    return [path.name for path in folder.rglob(".*") if path.suffix != ".lock"]
