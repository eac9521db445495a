"""Ctrl-C stops everything with exit code 130 and a line on how to go on; nothing done before is lost."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from tests.test_kill import (
    COMMANDS,
    PATIENCE,
    batch_in,
    command,
    complete,
    content,
    made,
    runs_on,
    spare,
    wait_until,
)

__all__ = ["made"]  # a fixture


def start(words: list[str], errors: Path) -> subprocess.Popen:
    """`iadd-lab` with these arguments in a process group of its own, as a terminal has it."""
    with errors.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "iadd_lab", *words], stderr=file, start_new_session=True
        )


def lines(errors: Path) -> list[str]:
    """The lines on stderr; of a progress bar, every state."""
    return [line.strip() for line in re.split(r"[\r\n]", errors.read_text()) if line.strip()]


def check_stopped(process: subprocess.Popen, errors: Path) -> str:
    """The last line of a process that was interrupted."""
    assert process.wait(PATIENCE) == 130, errors.read_text()
    assert "Traceback" not in errors.read_text()
    said = [line for line in lines(errors) if line.startswith("stopped: ")]
    assert said == lines(errors)[-1:]
    return said[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_says_how_to_go_on_and_does(made, tmp_path, name):
    words, errors = command(name, tmp_path / "out", made), tmp_path / "stderr.txt"
    process = start(words, errors)
    wait_until(lambda: re.search(r" [1-9][0-9]*/", errors.read_text()))  # its bar moves
    if name == "distill":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    said = check_stopped(process, errors)
    (kept,) = (path for path in (tmp_path / "out").rglob("*") if "checkpoint" in path.name)
    assert re.search(rf"after (epoch|iteration) [1-9][0-9]* is kept in {re.escape(str(kept))}", said)
    assert "run the same again to go on" in said
    complete(words)
    assert not spare(tmp_path / "out")
    expected = {key: held for key, held in content(made).items() if (tmp_path / "out" / key).exists()}
    assert content(tmp_path / "out") == expected


@pytest.mark.parametrize("seconds", [0.4, 1.2])
def test_interrupted_while_it_imports_it_ends_as_well(tmp_path, seconds):
    process = start(["data", "list"], tmp_path / "stderr.txt")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    # A shell shows 130 for both; 0 where this machine had imported and ended before.
    assert process.wait(PATIENCE) in (130, 0)


def test_an_interrupted_batch_stops_its_kernel(tmp_path):
    folders, errors = batch_in(tmp_path), tmp_path / "stderr.txt"
    options = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
    process = start(["reproduce", *options], errors)
    wait_until((folders["runs"] / "slow" / "1").exists)
    os.killpg(process.pid, signal.SIGINT)
    assert "run the same again to go on" in check_stopped(process, errors)
    (kernel,) = (int(path.stem) for path in folders["runs"].rglob("*.pid"))
    wait_until(lambda: not runs_on(kernel))
    assert not (folders["figures"] / "quick" / "slow.ipynb").exists()


PREPARE = """
import pathlib
import torch
from iadd_lab import DistillConfig, TeacherConfig, distill, load_data, train_teachers
from iadd_lab.training.networks import NetworkConfig
torch.set_num_threads(1)
data = load_data("digits")
config = TeacherConfig(NetworkConfig(width=4, depth=2), epochs=3)
teachers = train_teachers(data, config, "teachers", count=1, progress=False)
config = DistillConfig(iterations=120, student_steps=4, teacher_epochs=1, max_start_epoch=2, alpha_rate=1e-6)
seen = []
"""
RUN = """
def note(iteration, history):
    seen.append(iteration)
    pathlib.Path("begun").touch()

result = distill(data, teachers, config, folder="run", progress=False, on_iteration=note)
"""
UNDISTURBED = "expected = distill(data, teachers, config, progress=False)"


@pytest.fixture
def kernel(tmp_path):
    """The manager and the client of a new kernel in a folder of its own."""
    manager, client = start_new_kernel(cwd=str(tmp_path), kernel_name="python3")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def reply(client, request: str) -> dict:
    """What the kernel says at the end of a cell."""
    while True:
        message = client.get_shell_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") == request:
            return message["content"]


def value(client, expression: str):
    """What `expression`, a list of numbers, is in the kernel."""
    found = reply(client, client.execute("", user_expressions={"asked": expression}))
    return ast.literal_eval(found["user_expressions"]["asked"]["data"]["text/plain"])


def test_a_kernel_that_is_interrupted_lives_and_goes_on(kernel, tmp_path):
    manager, client = kernel
    assert reply(client, client.execute(PREPARE))["status"] == "ok"
    # Kernels drop what was sent right after an error, as if it had been waiting behind it.
    request = client.execute(RUN, stop_on_error=False)
    wait_until((tmp_path / "begun").exists)
    manager.interrupt_kernel()
    stopped = reply(client, request)
    assert stopped["ename"] == "KeyboardInterrupt"
    assert "run the same again to go on" in stopped["evalue"]
    seen = value(client, "seen")
    assert 1 <= len(seen) < 120
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert reply(client, client.execute(RUN))["status"] == "ok"
    assert value(client, "seen") == list(range(1, 121))  # no iteration twice
    assert reply(client, client.execute(UNDISTURBED))["status"] == "ok"
    assert value(client, "[bool((result.images == expected.images).all())]") == [True]
