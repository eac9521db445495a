"""Does memory grow with the bytes of the pictures? `python -m tests.soak.large_sets TASK [COUNT]`.

The task is `reading`, `teacher`, `evaluation` or, one after the other, `teacher+evaluation`. So many random
pictures (100,000) of 64 × 64 × 3 are read from an npz and split; then a teacher of width 32 is trained for an
epoch, or a few of them are evaluated, in a process of its own. The exit code is 1 where more than 2.2 times
the pictures' bytes and 0.5 GB were resident at once. No part of `make test`: it takes minutes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iadd_lab import EvaluateConfig, TeacherConfig, train_teachers
from iadd_lab.data.preprocess import fit_preprocess
from iadd_lab.data.sets import ImageData, load_data
from iadd_lab.evaluation.protocol import evaluate_random
from iadd_lab.training.networks import NetworkConfig

ALLOWED = 2.2, 0.5e9  # times the pictures' bytes, and bytes beside them


class Peak(NamedTuple):
    """Bytes: of the pictures, and the most in memory before there were any, with them, and in the end."""

    pictures: int
    before: int
    read: int
    worked: int


def write(path: Path, count: int, size: int) -> None:
    """Random pictures of ten classes in an npz."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 10)


def peak() -> int:
    """The most that this process has had in memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def teacher(data: ImageData, folder: str, width: int, batch: int) -> None:
    """An epoch of a teacher, and its accuracy on validation images."""
    config = TeacherConfig(network=NetworkConfig(width=width), epochs=1, batch=batch)
    train_teachers(data, config, folder, count=1, progress=False, device="cpu")


def evaluation(data: ImageData, folder: str, width: int, batch: int) -> None:
    """A real picture of each class, trained on and tested on the test images."""
    config = EvaluateConfig(network=NetworkConfig(width=width), networks=1, epochs=2, batch=batch)
    fitted = fit_preprocess("standardise", data.train.images)
    evaluate_random(data, fitted, config, ipc=1, progress=False, device="cpu")


TASKS = {"reading": lambda *_: None, "teacher": teacher, "evaluation": evaluation}


def measured(tasks: str, *, count: int, size: int, width: int, batch: int) -> Peak:
    """The peaks of a fresh process at these tasks."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "pictures.npz", count, size)
        job = [sys.executable, "-m", __spec__.name, "--child", tasks, folder, str(width), str(batch)]
        done = subprocess.run(job, check=True, stdout=subprocess.PIPE, text=True)
    return Peak(count * 3 * size**2, *json.loads(done.stdout))


def child(tasks: str, folder: str, width: str, batch: str) -> None:
    """The work of `measured`, in the process that is measured."""
    before = peak()
    data = load_data(Path(folder) / "pictures.npz", progress=False)
    loaded = peak()
    for name in tasks.split("+"):
        TASKS[name](data, f"{folder}/work", int(width), int(batch))
    print(json.dumps([before, loaded, peak()]))


def main(task: str, count: int = 100_000) -> int:
    """Measure, print, and compare."""
    found = measured(task, count=int(count), size=64, width=32, batch=256)
    allowed = ALLOWED[0] * found.pictures + ALLOWED[1]
    said = ", ".join(f"{name} {each / 1e9:.2f} GB" for name, each in found._asdict().items())
    print(f"{task}: {said}; allowed {allowed / 1e9:.2f} GB")
    return int(found.worked > allowed)


if __name__ == "__main__":
    sys.exit(child(*sys.argv[2:]) if sys.argv[1] == "--child" else main(*sys.argv[1:]))
