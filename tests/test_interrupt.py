"""Ctrl-C stops everything with exit code 130 and a line on how to go on; nothing done before is lost."""

import ast
import contextlib
import os
import re
import signal

import psutil
import pytest
from jupyter_client.manager import start_new_kernel

from tests.processes import (
    PATIENCE,
    check_stopped,
    complete,
    content,
    exit_code,
    fork,
    held_command,
    spare,
    start,
    wait_until,
)

COMMANDS = {
    "teach": "teach --data digits --width 4 --teachers 1 --epochs 6 --rate 0.02 --momentum 0.5 --device cpu "
    "--out {out}/teachers",
    "distill": "distill --iterations 9 --student-steps 4 --teacher-epochs 1 --max-start-epoch 5 --batch 5 "
    "--alpha 0.02 --alpha-rate 1e-6 --device cpu --teachers {given}/teachers --out {out}/run",
    "evaluate": "evaluate {given}/run --epochs 20 --networks 2 --device cpu --out {out}/scores",
}
HELD_AT = 8  # an optimiser step in the middle of each


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the three commands make where nobody disturbs them."""
    folder = tmp_path_factory.mktemp("made")
    for words in COMMANDS.values():
        complete(words, out=folder, given=folder)
    return folder


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, signal.SIGINT) for name in COMMANDS),
        *(("distill", number) for number in (signal.SIGKILL, signal.SIGHUP, signal.SIGXCPU)),
        ("teach", signal.SIGUSR1),
        ("evaluate", signal.SIGTERM),
    ],
)
def test_a_stopped_command_says_how_to_go_on_and_does(made, tmp_path, name, number):
    out, output = tmp_path / "out", tmp_path / "output.txt"
    words = COMMANDS[name].format(out=out, given=made).split()
    process = fork(held_command, words, HELD_AT, tmp_path, output=output)
    wait_until(lambda: (tmp_path / "reached").exists() or not process.is_alive())
    os.killpg(process.pid, number)
    (tmp_path / "go").touch()
    if number == signal.SIGKILL:
        assert exit_code(process) == -number
    else:
        said = check_stopped(process, output, number)
        (kept,) = (path for path in out.rglob("*") if "checkpoint" in path.name)
        assert re.search(rf"after (epoch|iteration) [1-9][0-9]* is kept in {re.escape(str(kept))}", said)
        assert "run the same again to go on" in said
    complete(words)
    assert not spare(out)
    expected = {key: held for key, held in content(made).items() if (out / key).exists()}
    assert content(out) == expected


def test_interrupted_while_it_imports_it_ends_as_well(tmp_path):
    process = start(["data", "list"], tmp_path / "output.txt")

    def imports_torch() -> bool:
        with contextlib.suppress(psutil.Error):
            return any("libtorch" in loaded.path for loaded in psutil.Process(process.pid).memory_maps())
        return False

    wait_until(lambda: imports_torch() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert exit_code(process) in (130, 0)  # 0 where it had ended before
    assert "Traceback" not in (tmp_path / "output.txt").read_text()


PREPARE = """
import pathlib
import time
import torch
from iadd_lab import DistillConfig, NetworkConfig, TeacherConfig, distill, load_data, train_teachers
torch.set_num_threads(1)
data = load_data("digits")
config = TeacherConfig(NetworkConfig(width=4, depth=2), epochs=3)
teachers = train_teachers(data, config, "teachers", count=1, progress=False)
config = DistillConfig(iterations=60, student_steps=4, teacher_epochs=1, max_start_epoch=2, alpha_rate=1e-6)
seen = []
"""
RUN = """
def note(iteration, history):
    seen.append(iteration)
    pathlib.Path("begun").touch()
    while iteration == 2 and not pathlib.Path("go").exists():
        time.sleep(0.01)  # so that the interruption comes in the middle, however busy the other side is

result = distill(data, teachers, config, folder="run", progress=False, on_iteration=note)
"""
UNDISTURBED = "expected = distill(data, teachers, config, progress=False)"


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


def test_a_kernel_that_is_interrupted_lives_and_goes_on(request, tmp_path):
    manager, client = start_new_kernel(startup_timeout=PATIENCE, cwd=str(tmp_path), kernel_name="python3")
    request.addfinalizer(lambda: manager.shutdown_kernel(now=True))
    request.addfinalizer(client.stop_channels)
    assert reply(client, client.execute(PREPARE))["status"] == "ok"
    # Kernels drop what was sent right after an error, as if it had been waiting behind it.
    running = client.execute(RUN, stop_on_error=False)
    wait_until((tmp_path / "begun").exists)
    manager.interrupt_kernel()
    (tmp_path / "go").touch()
    stopped = reply(client, running)
    assert stopped["ename"] == "KeyboardInterrupt"
    assert "run the same again to go on" in stopped["evalue"]
    seen = value(client, "seen")
    assert 1 <= len(seen) < 60
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert reply(client, client.execute(RUN))["status"] == "ok"
    assert value(client, "seen") == list(range(1, 61))  # no iteration twice
    assert reply(client, client.execute(UNDISTURBED))["status"] == "ok"
    assert value(client, "[bool((result.images == expected.images).all())]") == [True]
