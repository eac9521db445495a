"""Disks that fill up, turn read-only or go away at any moment: `python -m tests.soak.faults [TIMES [NAME]]`.

Each of `reproduce`, `study`, `distill` and `export` meets each fault so many times (3), at random moments. It
must end by itself, with a sentence and no traceback; what has its final name must be whole; and when the disk
is back, the same command must make the same files as one that nobody disturbed. No part of `make test`; it
needs Linux and `unshare`, which says so where no disk may be mounted.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from iadd_lab.store.runs import stored
from tests.notebook_files import write_notebook
from tests.processes import PATIENCE, content
from tests.test_cli import DISTILL, TEACH

CELL = """
from iadd_lab.study.study import Study
from tests.test_study import TINY
study = Study(runs_dir, device="cpu", threads=1, progress=False)
print(study.cell(TINY, "iadd").evaluation.confusion.sum())
"""
STUDY = f"import sys; runs_dir = sys.argv[1]\n{CELL}"
FAULTS = ("full", "read-only", "lost")


def commands(given: Path, place: Path) -> dict[str, list[str]]:
    """What is tried; it makes everything in `place`, from what lies in `given`."""
    lab = [sys.executable, "-m", "iadd_lab"]
    reproduce = f"reproduce --notebooks {given}/notebooks --figures {place}/figures --runs {place}/runs"
    distill = f"{DISTILL} --teachers {given}/teachers --out {place}/runs/run"
    return {
        "reproduce": [*lab, *reproduce.split()],
        "study": [sys.executable, "-c", STUDY, f"{place}/runs"],
        "distill": [*lab, *distill.split()],
        "export": [*lab, *f"export {given}/run --to image_folder --out {place}/export".split()],
    }


def mount(*words: object) -> bool:
    """Whether it was possible; a disk that is being written to can't turn read-only at once."""
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode == 0


class Disk:
    """A disk that things happen to; below it lies an empty one that can't be written to."""

    def __init__(self, place: Path):
        self.place, self.aside = place, place.with_name(f"{place.name}_aside")
        for folder in (self.place, self.aside):
            folder.mkdir()
        mount("-t", "tmpfs", "-o", "size=4k,ro", "none", place)
        mount("-t", "tmpfs", "-o", "size=64m", "none", place)

    def harm(self, fault: str, process: subprocess.Popen) -> None:
        """Let it happen, unless the process ends before it can."""
        if fault == "full":
            with (self.place / "filler").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(2**16))
                except OSError:
                    return
        how = {"read-only": ("-o", "remount,ro", self.place), "lost": ("--move", self.place, self.aside)}
        while not mount(*how[fault]) and process.poll() is None:
            time.sleep(0.01)

    def heal(self, fault: str) -> None:
        """As it was before, with what was written to it."""
        if fault == "lost":
            mount("--move", self.aside, self.place)
        mount("-o", "remount,rw", self.place)
        (self.place / "filler").unlink(missing_ok=True)


def run(words: list[str], output: Path, place: Path) -> tuple[subprocess.Popen, float]:
    """A command that has begun to write into `place`, or has ended, and when that was."""
    with output.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    while process.poll() is None and not any(place.iterdir()):
        time.sleep(0.002)
    return process, time.monotonic()


def complete(words: list[str], output: Path, place: Path) -> float:
    """Seconds between the first and the last that a command writes; it must end well."""
    process, begun = run(words, output, place)
    assert process.wait(PATIENCE) == 0, output.read_text()
    return time.monotonic() - begun


def files(folder: Path) -> dict[str, object]:
    """Artefacts without their times, and whatever else is the same in every run."""
    others = [path for path in folder.rglob("*") if path.suffix in (".png", ".pdf", ".ipynb", ".md")]
    return content(folder) | {str(path.relative_to(folder)): path.read_bytes() for path in others}


def attempt(name: str, given: Path, disk: Disk, fault: str, after: float, expected: dict) -> str:
    """How a command ended that met the fault, and, if it fell short, in what."""
    words, output = commands(given, disk.place)[name], disk.place.with_suffix(".txt")
    process, _ = run(words, output, disk.place)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        disk.harm(fault, process)
    code, said = process.wait(PATIENCE), output.read_text()
    disk.heal(fault)
    if name == "export" and code == 0:  # it was done before, and wants an empty folder
        shutil.rmtree(disk.place / "export")
    short = ["a traceback"] if "Traceback" in said and name != "study" else []
    if (disk.place / "runs").exists():
        short += [each.name for each in stored(disk.place / "runs", verify=True) if each.state == "damaged"]
    again, _ = run(words, output, disk.place)
    if again.wait(PATIENCE):
        short.append(f"again: {output.read_text()[-500:]}")
    elif files(disk.place) != expected:
        short.append("other files")
    return f"{code}, BUT {short} {said[-500:]}" if short else str(code)


def everything(root: Path, times: int, names: tuple[str, ...]) -> int:
    """Try these commands in the folder `root`, and print a line for each of them and each fault."""
    ends, chance = Counter(), random.Random(0)
    given, output = root / "given", root / "output.txt"
    (given / "notebooks").mkdir(parents=True)
    write_notebook(given / "notebooks" / "one.ipynb", CELL, parameters='figures_dir = runs_dir = ""')
    for words in (f"{TEACH} --out {{}}/teachers", f"{DISTILL} --teachers {{}}/teachers --out {{}}/run"):
        lab = [sys.executable, "-m", "iadd_lab"]
        complete([*lab, *words.replace("{}", str(given)).split()], output, given)
    for name in names or commands(given, root):
        whole = root / f"whole_{name}"
        whole.mkdir()
        seconds, expected = complete(commands(given, whole)[name], output, whole), files(whole)
        for fault in FAULTS:
            found = Counter()
            for number in range(times):
                after = chance.uniform(0, seconds)
                disk = Disk(root / f"{name}_{fault}_{number}")
                found[attempt(name, given, disk, fault, after, expected)] += 1
            print(f"{name}, {fault}: {times} times; exit codes {dict(found)}", flush=True)
            ends += found
    return int(any("BUT" in end for end in ends))


def main(times: str = "3", *names: str) -> int:
    """Try the commands of these names, or all, so often."""
    with tempfile.TemporaryDirectory(prefix="faults", ignore_cleanup_errors=True) as root:
        return everything(Path(root), int(times), names)


if __name__ == "__main__":
    if "IADD_FAULTS" not in os.environ:
        os.environ |= {"IADD_FAULTS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
        enter = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "tests.soak.faults"]
        os.execvp(enter[0], [*enter, *sys.argv[1:]])
    sys.exit(main(*sys.argv[1:]))
