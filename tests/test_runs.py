"""What lies in a folder of runs is listed in a line each, and only what nobody needs is deleted."""

import errno
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from iadd_lab.cli import _bytes
from iadd_lab.store import locks
from iadd_lab.store.artefacts import atomic_path, save_artefact
from iadd_lab.store.locks import is_held, lock_of, locked, try_lock
from iadd_lab.store.runs import Criteria, is_temporary, prune, stored
from iadd_lab.study.study import Study
from tests.processes import complete, ended, exit_code, fork, says, wait_until
from tests.test_study import TINY


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of runs as a study leaves it."""
    root = tmp_path_factory.mktemp("made")
    study = Study(root, device="cpu", threads=1, progress=False)
    study.cell(TINY, "iadd")
    study.cell(TINY, "dm")
    (root / "reproduce" / "quick").mkdir(parents=True)
    (root / "reproduce" / "quick" / "table1.json").write_text("{}")
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy of it to work on."""
    return shutil.copytree(made, tmp_path / "runs")


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def gone(root: Path, **criteria) -> set[str]:
    """The files that pruning by `criteria` deletes."""
    before = names(root)
    prune(root, Criteria(**criteria), delete=True)
    return before - names(root)


def checkpoint(folder: Path) -> Path:
    tensors, metadata = {"images": torch.ones(3)}, {"run": "x", "iteration": 7}
    path = folder / "checkpoint.safetensors"
    return save_artefact(path, kind="checkpoint", tensors=tensors, metadata=metadata)


def make_old(path: Path, days: float) -> None:
    when = time.time() - days * 86400
    os.utime(path, (when, when))


def damage(path: Path) -> None:
    """A flipped bit in the tensors, which the header does not show."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def the(root: Path, pattern: str) -> Path:
    (path,) = root.glob(pattern)
    return path


def test_every_run_says_what_it_is(root):
    about = {each.name.rsplit("-", 1)[0]: each.about for each in stored(root, verify=True)}
    assert about == {
        "digits-ipc1-dm": "digits, IPC 1, distribution matching, 2 iterations",
        "digits-ipc1-iadd": "digits, IPC 1, learned, 3 iterations",
        "evaluations": "2 files",
        "reproduce": "of 1 notebooks",
        "teachers": "digits, 2 teachers, 3 epochs, convnet of width 4",
    }
    found = stored(root)
    assert {each.state for each in found} == {"finished"}
    assert sum(each.size for each in found) == sum((root / name).stat().st_size for name in names(root))


def test_teachers_and_evaluations_underway_leave_the_finished_ones(root):
    teachers = the(root, "teachers-*")
    save_artefact(teachers / "checkpoint_002.safetensors", kind="checkpoint", tensors={}, metadata={})
    (root / "evaluations" / "abc.checkpoint").write_text("")
    underway = {f"{teachers.name}/checkpoint_002.safetensors", "evaluations/abc.checkpoint"}
    assert gone(root, unfinished=True) == underway
    for path in teachers.glob("teacher_*"):
        path.unlink()
    assert ("teachers", "unfinished") in {(each.kind, each.state) for each in stored(root)}
    assert gone(root, unfinished=True) == {f"{teachers.name}/teachers.safetensors"}


def test_what_an_interrupted_write_leaves_goes_after_an_hour(root):
    folder = the(root, "digits-ipc1-dm-*")
    with atomic_path(folder / "distilled.safetensors") as temporary:
        shutil.copy(folder / "distilled.safetensors", temporary)
        old, new = folder / temporary.name, root / "evaluations" / temporary.name
    inner = folder / ".tmpQf6aZ9"  # of safetensors
    for path in (old, new, inner):  # as SIGKILL leaves it
        path.write_bytes(b"half")
    for path in (old, inner):
        make_old(path, 0.05)
        assert is_temporary(path)
    assert gone(root, unfinished=True) == {str(path.relative_to(root)) for path in (old, inner)}
    assert new.exists()
    for name in ("distilled.png", ".lock", ".ab.lock", ".git", "x.12345678", ".a.b_345678.png"):
        assert not is_temporary(Path(name))


def test_damage_is_found_named_and_pruned(root):
    hurt = the(root, "digits-ipc1-iadd-*/distilled.safetensors")
    damage(hurt)
    first = min((root / "evaluations").iterdir())
    damage(first)
    assert {each.state for each in stored(root)} == {"finished"}  # at a glance
    about = {each.state: each.about for each in stored(root, verify=True) if each.state != "finished"}
    assert about == {"damaged": f"2 files, 1 damaged, as {first.name}"}
    cut = the(root, "teachers-*/teacher_001.safetensors")
    cut.write_bytes(cut.read_bytes()[:-10])
    assert "teacher_001.safetensors: is not a whole safetensors file" in str(stored(root))
    lost = gone(root, damaged=True)
    assert {str(path.relative_to(root)) for path in (hurt, first, cut)} <= lost
    assert len(lost) == 5  # two of the teachers' other files


def test_criteria_hold_together(root):
    for path in root.glob("digits-*/*"):
        make_old(path, 10)
    first = min((root / "evaluations").iterdir())
    make_old(first, 10)
    assert gone(root, older_than=11) == set()
    assert gone(root, older_than=9, unfinished=True) == set()
    (dm,) = gone(root, older_than=9, name="*-dm-*")
    assert dm.startswith("digits-ipc1-dm-")
    assert gone(root, older_than=9, name="evaluations/*") == {f"evaluations/{first.name}"}
    assert gone(root, name="reproduce") == {"reproduce/quick/table1.json"}


def test_links_are_neither_followed_nor_deleted(root, tmp_path):
    outside = checkpoint(tmp_path / "outside")
    (root / "linked").symlink_to(outside.parent)
    (root / "inside").mkdir()
    (root / "inside" / "checkpoint.safetensors").symlink_to(outside)
    (root / "inside" / "more").symlink_to(outside.parent)
    prune(root, Criteria(name="*"), delete=True)
    assert outside.exists()
    assert (root / "linked").is_symlink()
    assert (root / "inside" / "more").is_symlink()


def test_what_is_not_ours_stays(root):
    (root / "notes.txt").write_text("mine")
    (root / "mine").mkdir()
    (root / "mine" / "thesis.pdf").write_text("mine")
    extra = the(root, "digits-ipc1-dm-*") / "thesis.pdf"
    extra.write_text("mine")
    (extra.parent / "notes").mkdir()
    kept = {each.path: kept for each, kept in prune(root, Criteria(name="*"), delete=True)}
    assert names(root) == {"notes.txt", "mine/thesis.pdf", str(extra.relative_to(root))}
    assert kept[extra.parent] == "all but notes, thesis.pdf, which iadd-lab did not write"


FOREIGN = ["poetry.lock", ".lock", "model.checkpoint", "checkpoint_5.safetensors"]


@pytest.mark.parametrize("name", [*FOREIGN, "empty", "empty/inside"])
def test_what_is_unfinished_but_not_ours_stays(tmp_path, name):
    mine, run = tmp_path / "mine", tmp_path / f"digits-ipc1-dm-{'0' * 16}"
    for folder in (mine, tmp_path / "killed", run):
        folder.mkdir()
    (tmp_path / "killed" / ".lock").touch()
    if "." in name:
        (mine / "thesis.pdf").write_text("mine")
        (mine / name).touch()
    else:
        (mine / name).mkdir(parents=True)
    prune(tmp_path, Criteria(unfinished=True), delete=True)
    assert (mine / name).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_version_is_not_damaged(root, monkeypatch):
    monkeypatch.setattr("iadd_lab.store.artefacts.FORMAT_VERSION", 99)
    save_artefact(root / "later" / "distilled.safetensors", kind="distilled", tensors={}, metadata={})
    monkeypatch.undo()
    found = next(each for each in stored(root) if each.name == "later")
    assert (found.state, found.about) == ("foreign", "distilled.safetensors: has format version 99, but this "
                                          "iadd-lab reads version 2")  # fmt: skip
    assert gone(root, damaged=True) == gone(root, name="later") == set()


def hold(lock: Path) -> None:
    with FileLock(lock):
        print("held", flush=True)
        signal.pause()


def test_what_another_process_works_on_stays_until_it_is_dead(root, tmp_path):
    folder = the(root, "digits-ipc1-iadd-*")
    names_of = {part: f"{folder.name}/{part}.safetensors" for part in ("distilled", "checkpoint")}
    checkpoint(folder)
    owner = fork(hold, lock_of(folder), output=tmp_path / "said.txt")  # as a study holds it
    wait_until(says(tmp_path / "said.txt", "held"))
    busy = {folder.name, f"{folder.name}/.lock", names_of["checkpoint"]}
    assert {each.name for each in stored(root) if each.busy} == busy
    ((underway, reason),) = prune(root, Criteria(unfinished=True), delete=True)
    assert underway.name == names_of["checkpoint"]
    kept = {each.kind: kept for each, kept in prune(root, Criteria(name="*"), delete=True)}
    assert reason == kept["distilled"] == "another process works on it, or it can't be locked"
    assert "may need these teachers" in kept["teachers"]
    assert names(root) >= {*names_of.values(), f"{folder.name}/.lock"}
    owner.kill()
    exit_code(owner)
    # A killed process leaves its lock.
    assert gone(root, unfinished=True) == {f"{folder.name}/.lock", names_of["checkpoint"]}
    assert names_of["distilled"] in gone(root, name="*")


def test_a_lock_nests_goes_and_is_known(tmp_path):
    lock = lock_of(tmp_path / "run")
    assert lock == tmp_path / "run" / ".lock"
    assert lock_of(tmp_path / "a.safetensors") == tmp_path / ".a.safetensors.lock"
    with locked(lock, "x"), locked(lock, "x"):
        assert is_held(lock)
        with try_lock(lock) as free:
            assert not free
    assert not is_held(lock)
    assert not lock.parent.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_one_line_says_so_and_no_run_is_in_use(root, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_without", set())
    for _ in range(2):
        with locked(root / "new" / ".lock", "the run"):
            assert not is_held(root / "new" / ".lock")
    assert not (root / "new").exists()
    (the(root, "digits-ipc1-dm-*") / ".lock").touch()  # as an earlier version left it
    assert not any(each.busy for each in stored(root))
    assert len(gone(root, unfinished=True)) == 1
    assert gone(root, name="*") > {"reproduce/quick/table1.json"}
    said = capsys.readouterr().err
    assert said.startswith(f"{root / 'new'} can't be locked ({os.strerror(number)}): let no other process")
    assert said.count("\n") == 1


def test_the_commands_list_show_and_delete(root):
    checkpoint(root / "half")
    listed = complete("runs list --verify --runs {root}", root=root)
    assert "unfinished  half: only a checkpoint, after 7 iterations" in listed.stdout
    assert listed.stdout.splitlines()[-1].startswith("6 entries, ")
    shown = complete("runs prune --unfinished --runs {root}", root=root)
    assert "1 entry, " in shown.stdout
    assert shown.stdout.endswith("would be deleted: --yes deletes\n")
    assert (root / "half").exists()
    chosen = "--unfinished --older-than 0 --name h* --yes"
    done = complete(f"runs prune {chosen} --runs {{root}}", root=root)
    assert done.stdout.endswith(f"in {root} deleted\n")
    assert not (root / "half").exists()


REFUSED = {
    "prune --runs {root}": "nothing says what to delete: give --unfinished",
    "prune --older-than -1 --runs {root}": "older_than is -1",
    "list --runs {run}": "is a run itself (it holds teachers.safetensors)",
    "list --runs {root}/none": "is no folder: pass a folder of runs with --runs",
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.items())
def test_commands_refuse_in_a_sentence(root, words, sentence):
    assert sentence in ended(2, f"runs {words}", root=root, run=the(root, "teachers-*"))


def test_sizes_are_read_at_a_glance():
    sizes = [0, 999, 1000, 2_345_678, 5 * 10**9, 10**16]
    assert [_bytes(size) for size in sizes] == ["0 B", "999 B", "1.0 kB", "2.3 MB", "5.0 GB", "10000.0 TB"]


def test_evaluations_are_one_line_and_none_is_opened_for_it(tmp_path):
    """There may be thousands."""
    (tmp_path / "evaluations").mkdir()
    for number in range(20):
        (tmp_path / "evaluations" / f"{number:016x}.safetensors").touch()
    (found,) = stored(tmp_path)
    assert (found.about, found.state) == ("20 files", "finished")  # to open one is to see its damage
    (found,) = stored(tmp_path, verify=True)
    assert found.about == "20 files, 20 damaged, as 0000000000000000.safetensors"
