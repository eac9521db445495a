"""Whether memory and open files stay flat in long work: `python -m tests.soak.memory distill|study [COUNT]`.

`distill` makes so many iterations (20,000), `study` so many settings (60). No part of `make test`: it takes
an hour in full. The exit code is 1 where more was in use at the end than after a tenth of the work.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace

import psutil
import torch

from iadd_lab import DistillConfig, distill, train_teachers
from iadd_lab.study.study import Study
from tests.samples import load
from tests.test_kill import TEACHER
from tests.test_study import TINY

ALLOWED = {"MB": 32, "files": 3}  # how much more may be in use at the end


def iterations(folder: str, count: int, note: Callable[[], None]) -> None:
    """One distillation of so many iterations, with its checkpoints."""
    data = load("digits")
    teachers = train_teachers(data, TEACHER, f"{folder}/teachers", count=1, progress=False)
    config = DistillConfig(iterations=count, student_steps=3, teacher_epochs=1, max_start_epoch=4)
    config = replace(config, alpha=0.02, alpha_rate=1e-6)
    hook = {"on_iteration": lambda iteration, history: iteration % (count // 20) or note()}
    distill(data, teachers, config, folder=f"{folder}/run", progress=False, **hook)


def settings(folder: str, count: int, note: Callable[[], None]) -> None:
    """A table with so many columns, each distilled and evaluated by itself."""
    study = Study(folder, device="cpu", threads=1, progress=False)
    for number in range(count):
        study.cells([replace(TINY, alpha=0.02 + number / 1e4)], ["iadd", "random"])
        if number % max(count // 20, 1) == 0:
            note()


def main(what: str, count: int = 0) -> int:
    """Do the work, print what is in use meanwhile, and compare."""
    torch.set_num_threads(1)
    work, usual = {"distill": (iterations, 20_000), "study": (settings, 60)}[what]
    process, used = psutil.Process(), []

    def note() -> None:
        used.append({"MB": process.memory_info().rss / 1e6, "files": process.num_fds()})
        print(f"{used[-1]['MB']:.0f} MB, {used[-1]['files']} open files", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work(folder, int(count) or usual, note)
    grown = {name: used[-1][name] - used[2][name] for name in ALLOWED}
    print(
        f"{what}, {int(count) or usual}: {grown['MB']:+.0f} MB, {grown['files']:+} open files since a tenth"
    )
    return int(any(grown[name] > allowed for name, allowed in ALLOWED.items()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
