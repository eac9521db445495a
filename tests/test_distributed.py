"""Several processes on one run: bit for bit that of one; what ends one of them loses nothing."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed

from iadd_lab.data.parametrisation import MultiFormation
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import Pruned, Uniform
from iadd_lab.distillation.segments import ALONE, Ranks
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.ranks import LostRankError, SharedRanks, joined, local_device
from iadd_lab.training.teachers import Teachers, train_teachers
from tests.processes import FORKS, PATIENCE, says, wait_until
from tests.samples import assert_refused, load
from tests.test_distill import CONFIG, STEEP

BASE = replace(CONFIG, segments=2)
CONFIGS = {
    "learned": BASE,
    "four segments": replace(BASE, segments=4, iterations=3),
    "pruned": replace(BASE, matching=Pruned(fraction=0.3), gradient="full"),
    "uniform": replace(BASE, matching=Uniform(), image_optimizer="adam", image_rate=0.1, gradient="frozen"),
    "formations": replace(BASE, parametrisation=MultiFormation(2), average=0.8, iterations=3),
    "back-off": replace(STEEP, segments=2),
}


def work(number: int, store: Path, results, data, teachers: Teachers, tasks: dict) -> None:
    """One of two ranks: run every task, a function of (ranks, data, teachers), and send what it returns."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    ranks = SharedRanks(first=number == 0, number=number, count=2)
    for name, (task, arguments) in tasks.items():
        try:
            found = task(ranks, data, teachers, *arguments)
        except (InputError, DivergenceError, LostRankError, SystemExit, KeyboardInterrupt) as error:
            found = (type(error).__name__, str(error))
        results.put((number, name, found))
    torch.distributed.destroy_process_group()


@pytest.fixture
def together(toy_data, toy_teachers, tmp_path):
    """Run tasks on two ranks; what each returned, as {name: [of rank 0, of rank 1]}."""

    def run(tasks: dict) -> dict[str, list]:
        results, store = FORKS.Queue(), tmp_path / f"store{len(list(tmp_path.glob('store*')))}"
        shared = (store, results, toy_data, toy_teachers, tasks)
        ranks = [FORKS.Process(target=work, args=(number, *shared), daemon=True) for number in range(2)]
        for rank in ranks:
            rank.start()
        found = {name: [None, None] for name in tasks}

        def all_ended() -> bool:
            with contextlib.suppress(queue.Empty):
                number, name, value = results.get(timeout=0.2)
                found[name][number] = value
                return False
            return not any(rank.is_alive() for rank in ranks) and results.empty()

        wait_until(all_ended)
        return found

    return run


def made(ranks, data, teachers, config: DistillConfig, folder: Path | None = None) -> tuple:
    """All that a distillation gives, but for its clock, as bytes."""
    result = distill(data, teachers, config, folder=folder, progress=False, ranks=ranks)
    history = {name: tensor for name, tensor in result.history.tensors().items() if "seconds" not in name}
    tensors = history | {"images": result.images, "importance": result.importance, "raw": result.raw}
    return result.alpha, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def differing(ranks, data, teachers) -> None:
    made(ranks, data, teachers, replace(BASE, seed=ranks.number))


def elsewhere(ranks, data, teachers, folder: Path) -> None:
    """Only rank 0 finds the checkpoint in its folder."""
    made(ranks, data, teachers, BASE, folder if ranks.first else None)


def hit(ranks, data, teachers, folder: Path, hit_rank: int, number: int) -> tuple:
    """A run of which one rank gets a signal in its third iteration, before it gathers."""
    gather, calls = SharedRanks.gather, []

    def counted(self, rows):
        calls.append(1)
        if len(calls) == 3 and hit_rank == ranks.number:
            os.kill(os.getpid(), number)
        return gather(self, rows)

    SharedRanks.gather = counted
    return made(ranks, data, teachers, BASE, folder)


@pytest.fixture(scope="module")
def alone(toy_data, toy_teachers):
    """What one process makes of each configuration."""
    return {name: made(ALONE, toy_data, toy_teachers, config) for name, config in CONFIGS.items()}


def test_two_ranks_make_bit_for_bit_what_one_process_does(together, alone, tmp_path):
    steep, folder = replace(STEEP, segments=2, back_offs=0), tmp_path / "run"
    tasks = {name: (made, (config,)) for name, config in CONFIGS.items()}
    tasks |= {"differing": (differing, ()), "steep": (made, (steep,))}
    tasks |= dict.fromkeys(("made", "read"), (made, (BASE, folder)))
    found = together(tasks)
    for name in CONFIGS:
        assert found[name] == [alone[name]] * 2, name
    assert found["made"] == found["read"] == [alone["learned"]] * 2
    for kind, said in found["differing"]:
        assert (kind, "rank 1 has another configuration, other teachers or" in said) == ("InputError", True)
    for kind, said in found["steep"]:
        assert (kind, "lower alpha_rate" in said) == ("DivergenceError", True)


LOST = r"another rank of this run has ended.* The state after {} iterations is kept in .*\. Run the same.*"
STOPPED = "the state after iteration 3 is kept in .*; run the same again to go on."


@pytest.mark.parametrize(
    ("rank", "number", "kind", "sentence"),
    [
        (0, signal.SIGINT, "KeyboardInterrupt", STOPPED),
        (0, signal.SIGTERM, "SystemExit", "143"),
        (1, signal.SIGTERM, "LostRankError", LOST.format(3)),
        (1, signal.SIGKILL, "LostRankError", LOST.format(2)),
    ],
)
def test_what_ends_one_rank_ends_both_and_loses_nothing(
    together, tmp_path, alone, toy_data, toy_teachers, rank, number, kind, sentence
):
    """Rank 0 keeps what it has done; two ranks, or one process, go on from there."""
    folder = tmp_path / "run"
    ended, said = together({"hit": (hit, (folder, rank, number))})["hit"][0]
    assert ended == kind
    assert re.fullmatch(sentence, said)
    if rank == 0:
        assert together({"again": (made, (BASE, folder))})["again"] == [alone["learned"]] * 2
    else:
        refused = together({"elsewhere": (elsewhere, (folder,))})["elsewhere"]
        assert all("another checkpoint than rank 0" in said for _, said in refused)
        assert made(ALONE, toy_data, toy_teachers, BASE, folder) == alone["learned"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processes on chosen cores")
def test_torchrun_shares_a_run_of_the_command_line(toy_config, tmp_path):
    """A rank is killed in the middle: rank 0 says so, and one process goes on with what two began."""
    data = load("digits")
    teachers = train_teachers(data, toy_config, tmp_path / "teachers", count=2, progress=False)
    config = replace(BASE, iterations=20_000, alpha_rate=0.0, augment=None)
    fields = "iterations segments ipc student-steps teacher-epochs max-start-epoch batch image-rate alpha "
    fields += "alpha-rate snapshots"
    words = [f"--{name}={getattr(config, name.replace('-', '_'))}" for name in fields.split()]
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
    wait_until(says(errors, r"\| [1-9][0-9]*/20000"))
    (second,) = (p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1")
    second.kill()
    assert process.wait(PATIENCE) != 0
    said = [line for line in re.split(r"[\r\n]", errors.read_text()) if "stopped: " in line]
    assert len(said) == 1
    assert re.search(r"another rank of this run has ended.* iterations is kept in .*checkpoint", said[0])
    seen = []

    def stop(iteration, history):
        seen.append(iteration)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        distill(data, teachers, config, folder=tmp_path / "run", progress=False, on_iteration=stop)
    assert 1 < seen[0] <= config.iterations


def test_segments_that_can_not_be_shared_are_named(toy_data, toy_teachers):
    sentence = "segments is 3, which 2 processes can't share evenly: set it to a multiple of 2, or start"
    two, config = SharedRanks(number=1, count=2), replace(CONFIG, segments=3)
    assert_refused(sentence, distill, toy_data, toy_teachers, config, ranks=two)
    assert [list(SharedRanks(number=n, count=2).own(6)) for n in range(2)] == [[0, 1, 2], [3, 4, 5]]


def test_a_process_of_its_own_exchanges_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined(torch.device("cpu")) as ranks:
        assert ranks == ALONE == Ranks()
    assert local_device("auto") == "auto"


def test_each_rank_of_a_machine_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    named = {"LOCAL_RANK": "3", "RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "9"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    found = [local_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")]
    assert found == ["cuda:3", "cuda:3", "cuda:1", "cpu"]
