"""A disk that is really full, or read-only: one sentence, nothing that only looks whole, and on it goes.

Every scenario runs in one process, which mounts disks of a few pages that nobody else sees.
"""

import re
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from iadd_lab import distill, open_teachers, train_teachers
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.result import DistillResult
from iadd_lab.store.artefacts import load_artefact, read_metadata
from iadd_lab.store.runs import is_temporary, stored
from iadd_lab.study.study import Study
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig
from tests.notebook_files import write_notebook
from tests.processes import complete, content, ended, run
from tests.samples import load
from tests.test_cli import DISTILL, TEACH
from tests.test_study import TINY

EVALUATE = "evaluate --epochs 3 --networks 2 --no-random --device cpu"
_PAGE = 4096


def test_full_and_read_only_disks(tmp_path):
    """All scenarios of this file, in a process that may mount disks, which nobody else sees."""
    enter = ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run([*enter, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    words = [*enter, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    words += ["-o", "python_functions=scenario_*", f"--basetemp={tmp_path / 'disks'}"]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


class Disk:
    """A small disk with a file that fills it."""

    def __init__(self, place: Path):
        self.place, self.filler = place, place / "filler"
        place.mkdir()
        mount("-t", "tmpfs", "-o", "size=1m", "none", place)

    def leave(self, pages: int) -> None:
        """Fill it but for so many pages."""
        self.free()
        with self.filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(_PAGE))
            except OSError:
                file.truncate(file.tell() - pages * _PAGE)

    def free(self) -> None:
        """Make room."""
        self.filler.unlink(missing_ok=True)


def everywhere(monkeypatch, name: str, function: object) -> None:
    """Replace what the package calls `name`."""
    for module in [each for key, each in sys.modules.items() if key.startswith("iadd_lab")]:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, function)


def full(command: str, **paths: object) -> str:
    """The name of the file for which there was no room."""
    sentence = ended(1, command, **paths)
    told = " could not be written (No space left on device): make room on its disk, then run the same again."
    assert told in sentence
    return Path(sentence.removeprefix("stopped: ").removesuffix(told)).name


def check_whole(folder: Path) -> None:
    """What has its final name can be read, and nothing else is there."""
    kinds = {"teacher_": "trajectory"} | {name: name for name in ("teachers", "distilled", "evaluation")}
    for path in folder.rglob("*"):
        assert not is_temporary(path), path
        assert path.name != ".lock", path
        if path.suffix == ".safetensors":
            (kind,) = (kind for begin, kind in kinds.items() if path.name.startswith(begin))
            load_artefact(path, kind=kind)
        elif path.is_file():
            assert path.read_bytes().rstrip().endswith((b"IEND\xaeB`\x82", b"%%EOF")), path


def scenario_commands_go_on_when_there_is_room_again(tmp_path):
    teach = f"{TEACH} --out {{at}}/teachers"
    distill = f"{DISTILL} --teachers {{at}}/teachers --out {{at}}/run"
    evaluate = f"{EVALUATE} {{at}}/run --out {{at}}/scores"
    disk = Disk(tmp_path / "disk")
    place = disk.place
    # In rooms of so many pages, the file for which there is none.
    steps = {
        "teachers": (teach, {0: "teachers.safe*", 1: "teacher_000.safe*", 3: "teacher_001.safe*"}),
        "run": (distill, {3: "distilled.safetensors", 9: "distilled.png"}),
        "scores": (evaluate, {0: "evaluation_*.safetensors", 1: "evaluation_*_accuracy.png"}),
    }
    for name, (command, rooms) in steps.items():
        complete(command, at=tmp_path)
        for pages, file in rooms.items():
            disk.leave(pages)
            assert fnmatch(full(command, at=place), file)
            check_whole(place / name)
            assert not list(place.glob(f"{name}/{file}"))
        disk.free()
        complete(command, at=place)
        assert content(place / name) == content(tmp_path / name)
    check_whole(place / "scores")


def scenario_a_study_goes_on_when_there_is_room_again(tmp_path):
    disk = Disk(tmp_path / "disk")
    runs, options = disk.place / "runs", {"device": "cpu", "threads": 1, "progress": False}
    study = Study(runs, **options)
    for pages in (0, 4, 8, 7):  # for nothing; teachers in part; no set; no evaluation
        disk.leave(pages)
        with pytest.raises(OSError, match=r"No space left on device.*make room"):
            study.cell(TINY, "iadd")
        assert all(each.state != "damaged" for each in stored(runs, verify=True))
    disk.free()
    made = study.cell(TINY, "iadd").evaluation.confusion
    assert all(each.state == "finished" for each in stored(runs, verify=True))
    other = Study(tmp_path / "runs", **options).cell(TINY, "iadd").evaluation.confusion
    assert torch.equal(made, other)


def make(folder: Path, *, iterations: int) -> None:
    """Teachers and a run in `folder`, without pictures."""
    data = load("digits", train_limit=200)
    config = TeacherConfig(network=NetworkConfig(width=4, depth=2), epochs=2)
    teachers = train_teachers(data, config, folder / "teachers", count=1, progress=False)
    config = DistillConfig(iterations=iterations, student_steps=2, teacher_epochs=1, alpha_rate=1e-6)
    distill(data, teachers, config, folder=folder / "run", progress=False)


def scenario_a_checkpoint_for_which_there_is_no_room_leaves_the_one_before(tmp_path):
    make(tmp_path, iterations=6)
    config = DistillResult.load(tmp_path / "run" / "distilled.safetensors").config
    disk = Disk(tmp_path / "disk")
    teachers, kept = open_teachers(tmp_path / "teachers"), disk.place / "run" / "checkpoint.safetensors"
    data, options = load("digits", train_limit=200), {"folder": kept.parent, "progress": False}

    def fill(iteration, history):
        if kept.exists():
            disk.leave(0)

    with pytest.raises(OSError, match="No space left on device"):
        distill(data, teachers, config, on_iteration=fill, checkpoint_seconds=0, **options)
    assert 0 < read_metadata(kept, kind="checkpoint")["iteration"] < 6
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    disk.free()
    distill(data, teachers, config, **options)
    assert content(kept.parent) == content(tmp_path / "run")


def scenario_what_is_measured_or_executed_needs_room(tmp_path, monkeypatch):
    disk = Disk(tmp_path / "disk")
    measured = {"matmul_gflops": 1.0, "engines": [], "training": [], "more": "x" * 9000}
    everywhere(monkeypatch, "measure", lambda config: measured)
    disk.leave(0)
    assert full("bench --json {at}/bench.json", at=disk.place) == "bench.json"
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "good.ipynb", "1 + 1", parameters='figures_dir = ""')
    reproduce = "reproduce --notebooks {at}/notebooks --figures {disk}/figures --runs {at}/runs"
    paths = {"at": tmp_path, "disk": disk.place}
    assert full(reproduce, **paths) == "good.ipynb"
    assert [path.name for path in (disk.place / "figures" / "quick").iterdir()] == []
    monkeypatch.setattr(tempfile, "tempdir", str(disk.place))  # $TMPDIR
    reproduce_elsewhere = reproduce.replace("{disk}", "{at}")
    told = rf"could not be executed: nothing could be written in {disk.place}/.*: make room there, set"
    assert re.search(told, run(reproduce_elsewhere, **paths).stdout)
    disk.free()
    make(tmp_path, iterations=1)
    disk.leave(1)
    export = "export {at}/run --to image_folder --out {disk}/export"
    assert full(export, **paths).endswith(".png")
    disk.free()
    complete(export, **paths)
    complete(reproduce, **paths)
    assert "1 of 1 notebooks up to date" in complete(reproduce, **paths).stdout
    complete("bench --json {at}/bench.json", at=disk.place)


def scenario_a_folder_that_is_read_only_is_refused_before_any_work(tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    make(kept, iterations=1)
    mount("--bind", kept, kept)
    mount("-o", "remount,bind,ro", kept)  # root may write whatever the mode bits say

    def fail(*_, **__):
        raise AssertionError("work began")

    everywhere(monkeypatch, "load_data", fail)
    everywhere(monkeypatch, "measure", fail)
    sentence = "can't be written to (Read-only file system): choose another folder."
    for command in (
        f"{TEACH} --out {{at}}/teachers",
        f"{DISTILL} --teachers {{at}}/teachers --out {{at}}/new",
        f"{EVALUATE} {{at}}/run",
        "bench --json {at}/bench.json",
    ):
        assert sentence in ended(2, command, at=kept)
    with pytest.raises(ValueError, match="Read-only file system"):
        Study(kept, progress=False)
    # To read it, and to list it, is no harm.
    assert "2 entries" in complete("runs list --verify --runs {at}", at=kept).stdout
    assert complete("runs prune --name * --yes --runs {at}", at=kept).stdout.count("kept: ") == 2


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    write_notebook(tmp_path / "good.ipynb", parameters='figures_dir = ""')
    for command in (
        "bench --json {at}/file/x.json",
        "reproduce --notebooks {at} --figures {at}/file --runs {at}/runs",
        "reproduce --notebooks {at} --figures {at}/figures --runs {at}/file",
    ):
        assert str(tmp_path / "file") in ended(2, command, at=tmp_path)
