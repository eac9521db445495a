"""Several processes on one run: bit for bit that of one; they stop together, and survive the loss of one."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed
from iadd_lab.store.ranks import LostRankError, Ranks, joined, local_device

from iadd_lab.data.sampling import INITIAL_IMAGES
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import Pruned, Uniform
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.training.teachers import Teachers, train_teachers
from tests.samples import load
from tests.test_distill import CONFIG, STEEP, assert_same

PATIENCE = 60  # seconds after which something hangs
BASE = replace(CONFIG, segments=2)
CONFIGS = {
    "learned": BASE,
    "four segments": replace(BASE, segments=4, iterations=3),
    "pruned": replace(BASE, matching=Pruned(fraction=0.3), gradient="full"),
    "uniform adam": replace(
        BASE, matching=Uniform(), image_optimizer="adam", image_rate=0.1, gradient="frozen"
    ),
    "back-off": replace(STEEP, segments=2),
}


def work(number: int, store: Path, results, data, teachers: Teachers, tasks: dict) -> None:
    """One of two ranks: run every task, a function of (ranks, data, teachers), and send what it returns."""
    torch.set_num_threads(1)
    address = {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(address, OMP_NUM_THREADS="2")  # set by the user, so left alone
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    ranks = Ranks(number, 2)
    for name, (task, arguments) in tasks.items():
        try:
            found = task(ranks, data, teachers, *arguments)
        except (InputError, DivergenceError, LostRankError, SystemExit, KeyboardInterrupt) as error:
            found = (type(error).__name__, str(error))
        results.put((number, name, found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def forks():
    """Processes that need not import anything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    return context


@pytest.fixture
def together(forks, toy_data, toy_teachers, tmp_path):
    """Run tasks on two ranks; what each returned, as {name: [of rank 0, of rank 1]}."""

    def run(tasks: dict) -> dict[str, list]:
        results = forks.Queue()
        ranks = [
            forks.Process(
                target=work, args=(number, tmp_path / "store", results, toy_data, toy_teachers, tasks)
            )
            for number in range(2)
        ]
        for rank in ranks:
            rank.start()
        found = {name: [None, None] for name in tasks}
        expected = 2 * len(tasks)
        ending = time.monotonic() + PATIENCE
        while expected and time.monotonic() < ending:
            try:
                number, name, value = results.get(timeout=0.2)
            except Exception:  # empty so far
                if not any(rank.is_alive() for rank in ranks) and results.empty():
                    break
                continue
            found[name][number] = value
            expected -= 1
        for rank in ranks:
            rank.join(PATIENCE)
            rank.kill()
        return found

    return run


def small(ranks, data, teachers, config: DistillConfig) -> tuple:
    """All that a distillation gives, but for its clock, as bytes."""
    return content(distill(data, teachers, config, progress=False, ranks=ranks))


def content(result: DistillResult) -> tuple:
    history = {name: tensor for name, tensor in result.history.tensors().items() if "seconds" not in name}
    tensors = history | {"images": result.images, "importance": result.importance, "raw": result.raw}
    return result.alpha, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def in_double(ranks, data, teachers, config: DistillConfig) -> tuple:
    """Images, α and W of a distillation in float64."""
    snapshot, network, real = Teachers.snapshot, Teachers.network, INITIAL_IMAGES["real"]
    INITIAL_IMAGES["real"] = lambda *drawn: real(*drawn).double()
    Teachers.snapshot = lambda *place: snapshot(*place).double()
    Teachers.network = lambda *seed: network(*seed).double()
    torch.set_default_dtype(torch.float64)
    try:
        result = distill(data, teachers, config, progress=False, ranks=ranks)
    finally:
        torch.set_default_dtype(torch.float32)
        Teachers.snapshot, Teachers.network, INITIAL_IMAGES["real"] = snapshot, network, real
    return str(result.images.dtype), result.images.tolist(), result.alpha, result.importance.tolist()


def differing(ranks, data, teachers) -> None:
    distill(data, teachers, replace(BASE, seed=ranks.number), progress=False, ranks=ranks)


def resumed(ranks, data, teachers, folder: Path, signalled: tuple[int, int] | None = None) -> tuple:
    """A run that goes on if it can; the rank and signal `signalled` hits it in its third iteration."""
    gather, calls = Ranks.gather, []

    def counted(self, rows):
        calls.append(1)
        if len(calls) == 3 and signalled is not None and signalled[0] == ranks.number:
            os.kill(os.getpid(), signalled[1])
        return gather(self, rows)

    Ranks.gather = counted
    folder = folder if ranks.first else None
    try:
        return content(distill(data, teachers, BASE, folder=folder, progress=False, ranks=ranks))
    finally:
        Ranks.gather = gather


@pytest.fixture(scope="module")
def alone(toy_data, toy_teachers):
    """What one process makes of each configuration."""
    return {name: small(Ranks(), toy_data, toy_teachers, config) for name, config in CONFIGS.items()}


def test_two_ranks_make_bit_for_bit_what_one_process_does(together, alone, toy_data, toy_teachers):
    tasks = {name: (small, (config,)) for name, config in CONFIGS.items()}
    double = {"double": (in_double, (BASE,)), "differing": (differing, ())}
    found = together(tasks | double)
    for name, (first, second) in ((name, found[name]) for name in CONFIGS):
        assert first == alone[name], name
        assert second == first, name
    kind, images, alpha, importance = in_double(Ranks(), toy_data, toy_teachers, BASE)
    assert kind == found["double"][0][0] == "torch.float64"
    for other in found["double"]:
        torch.testing.assert_close(torch.tensor(other[1]), torch.tensor(images), rtol=0, atol=1e-10)
        assert other[2] == pytest.approx(alpha, abs=1e-10)
        assert other[3] == pytest.approx(importance, abs=1e-10)
    sentence = "rank 1 has another configuration or other teachers than rank 0"
    assert all(kind == "InputError" and sentence in said for kind, said in found["differing"])


def test_ranks_diverge_alike_and_all_get_a_finished_result(together, tmp_path, alone):
    steep = replace(STEEP, segments=2, back_offs=0)
    found = together(
        {
            "steep": (small, (steep,)),
            "made": (resumed, (tmp_path / "run",)),
            "read": (resumed, (tmp_path / "run",)),
        }
    )
    for kind, said in found["steep"]:
        assert kind == "DivergenceError"
        assert "lower alpha_rate" in said
    assert found["made"] == found["read"] == [alone["learned"], alone["learned"]]


@pytest.mark.parametrize(("asked", "number"), [(0, signal.SIGINT), (1, signal.SIGINT), (1, signal.SIGTERM)])
def test_asked_to_stop_is_one_and_all_stop_after_the_same_iteration(
    together, tmp_path, alone, toy_data, toy_teachers, asked, number
):
    folder = tmp_path / "run"
    found = together({"stop": (resumed, (folder, (asked, number))), "again": (resumed, (folder,))})
    if number == signal.SIGINT:
        first, second = found["stop"]
        assert first[0] == second[0] == "KeyboardInterrupt"
        assert re.match(r"the state after iteration 3 is kept in .*; run the same again", first[1])
    else:
        assert found["stop"] == [("SystemExit", "143")] * 2
    assert found["again"] == [alone["learned"]] * 2


def test_a_killed_rank_leaves_a_checkpoint_with_which_one_process_goes_on(
    together, tmp_path, alone, toy_data, toy_teachers
):
    folder = tmp_path / "run"
    started = time.monotonic()
    kind, said = together({"lost": (resumed, (folder, (1, signal.SIGKILL)))})["lost"][0]
    assert time.monotonic() - started < PATIENCE / 2
    assert kind == "LostRankError"
    assert re.fullmatch(
        r"another rank of this run has ended.* The state after 2 iterations is kept in .*\. Run the same .*",
        said,
    )
    seen = []
    options = {"folder": folder, "progress": False, "on_iteration": lambda i, _: seen.append(i)}
    assert content(distill(toy_data, toy_teachers, BASE, **options)) == alone["learned"]
    assert seen == list(range(3, BASE.iterations + 1))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processes on chosen cores")
def test_torchrun_shares_a_run_of_the_command_line(toy_config, tmp_path):
    """A rank is killed in the middle: rank 0 says so, and one process ends what two began."""
    data = load("digits")
    teachers = train_teachers(data, toy_config, tmp_path / "teachers", count=2, progress=False)
    config = replace(BASE, iterations=60, augment=None)
    fields = ("iterations", "segments", "ipc", "student_steps", "teacher_epochs", "max_start_epoch", "batch")
    fields += ("image_rate", "alpha", "alpha_rate", "snapshots")
    words = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in fields]
    words += [f"--weight-rate={config.matching.rate}", f"--teachers={teachers.folder}", "--device=cpu"]
    errors = tmp_path / "errors.txt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with errors.open("w") as file:
        process = subprocess.Popen(
            [*torchrun, "-m", "iadd_lab", "distill", *words, f"--out={tmp_path / 'run'}"],
            stdout=file,
            stderr=file,
            # As many threads as here: one for each rank.
            preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2]),
        )
    wait_until(lambda: re.search(r"\| [1-9][0-9]*/60", errors.read_text()))  # its bar moves
    (second,) = (p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1")
    second.kill()
    killed = time.monotonic()
    assert process.wait(PATIENCE) != 0
    assert time.monotonic() - killed < 15
    said = [line for line in re.split(r"[\r\n]", errors.read_text()) if "stopped: " in line]
    assert len(said) == 1
    assert re.search(r"another rank of this run has ended.* iterations is kept in .*checkpoint", said[0])
    iterations = []
    options = {"progress": False, "on_iteration": lambda iteration, _: iterations.append(iteration)}
    resumed = distill(data, teachers, config, folder=tmp_path / "run", **options)
    assert 1 < iterations[0] <= 60
    assert_same(resumed, distill(data, teachers, config, progress=False))


def wait_until(condition) -> None:
    ending = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ending, "it did not happen"
        time.sleep(0.05)


def test_segments_that_can_not_be_shared_are_named(toy_data, toy_teachers):
    sentence = "segments is 3, which 2 processes can't share evenly: set it to a multiple of 2, or start"
    with pytest.raises(InputError, match=sentence):
        distill(toy_data, toy_teachers, replace(CONFIG, segments=3), ranks=Ranks(1, 2))
    assert [list(Ranks(number, 2).own(6)) for number in range(2)] == [[0, 1, 2], [3, 4, 5]]


def test_a_process_of_its_own_exchanges_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined(torch.device("cpu")) as ranks:
        assert ranks == Ranks()
    assert local_device("auto") == "auto"
    assert ranks.largest(15) == 15
    assert ranks.from_first("x") == "x"
    assert ranks.checkpoint_seconds(60.0) == 60.0
    assert Ranks(0, 2).checkpoint_seconds(60.0) == 10.0


def test_each_rank_of_a_machine_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [local_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:3",
        "cuda:1",
        "cpu",
    ]
