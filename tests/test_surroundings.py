"""Machines as they are: streams of any encoding or none, users without home or name, what launchers left."""

import getpass
import io
import os
import pwd
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from cyclopts import App

from iadd_lab import (
    DistillConfig,
    EvaluateConfig,
    distill,
    evaluate,
    open_teachers,
    ranks,
    train_teachers,
)
from iadd_lab.__main__ import main
from iadd_lab.cli import command
from iadd_lab.data.sets import DataConfig, cache_root, data_root, load_data
from iadd_lab.device import Execution, name_user
from iadd_lab.distillation.segments import ALONE
from iadd_lab.notebooks import Page
from iadd_lab.notebooks.batch import batch_in
from iadd_lab.ranks import joined, local_device
from iadd_lab.store import resumable
from iadd_lab.store.artefacts import check_folder
from iadd_lab.training.fast.compiling import compiled_kernels
from tests.processes import complete
from tests.samples import assert_refused, make_tree

TEACH = "teach --data digits --width 4 --teachers 1 --epochs 1 --device cpu --out"


def program(monkeypatch, words: str, **streams: object) -> int:
    """The exit code of the whole program, with these in place of `sys.stdout` and others."""
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["iadd-lab", *words.split()])
    monkeypatch.setattr(resumable, "heed", lambda: None)  # it would last longer than this test
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "shift_jis", "utf-8"])
def test_streams_of_any_encoding_take_what_is_said(monkeypatch, encoding):
    for words, code in {"distill --help": 0, "data list": 0, "data check ±α": 2}.items():
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        assert program(monkeypatch, words, stdout=out, stderr=err) == code
        assert (err if code else out).buffer.getvalue().decode(encoding)


def test_streams_that_are_closed_are_done_without(monkeypatch, tmp_path):
    none = {"stdin": None, "stdout": None, "stderr": None}
    assert program(monkeypatch, f"{TEACH} {tmp_path}", **none) == 0
    assert (tmp_path / "teacher_000.safetensors").is_file()
    assert program(monkeypatch, "data check digist", **none) == 2
    monkeypatch.setattr(sys, "stderr", None)  # of a service that calls the library
    assert not Execution(progress=True).progress
    assert len(load_data(DataConfig("image_folder"), root=make_tree(tmp_path / "tree")).classes) == 2


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_nobody_has_to_read_what_is_said(monkeypatch, name):
    end, other = os.pipe()
    os.close(end)
    words, code = {"stdout": ("data list", 1), "stderr": ("data check digist", 2)}[name]
    for stream in (os.fdopen(other, "w"), open("/dev/full", "w")):  # noqa: SIM115 (`main` goes on using it)
        assert program(monkeypatch, words, **{name: stream}) == code


def test_commands_need_no_docstrings():
    """`python -OO` leaves none."""

    def bare(*, runs: int = 3) -> int:
        return runs

    command(group := App())(bare)
    assert group(["bare", "--runs", "4"], result_action="return_value") == 4


@pytest.fixture
def nobody(monkeypatch):
    """A user whom the system does not know, as in a container."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CACHE_HOME", "IADD_CACHE"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_name_and_home_is_given_both(nobody, monkeypatch):
    name_user()
    assert getpass.getuser() == os.environ["LOGNAME"] == f"user{os.getuid()}"
    assert cache_root() == Path(tempfile.gettempdir(), f"iadd-lab-{os.getuid()}", "decoded")
    monkeypatch.setenv("IADD_DATA", "~/data")
    assert_refused(r"~/data begins with ~, but there is no such home folder: write the path", data_root)


def test_a_name_that_there_is_stays(monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody")
    name_user()
    assert os.environ["LOGNAME"] == "somebody"


def test_home_is_known_by_its_tilde_wherever_a_path_is_given(monkeypatch, tmp_path):
    for name in ("HOME", "IADD_DATA"):
        monkeypatch.setenv(name, str(tmp_path) if name == "HOME" else "~/data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("pages: {one: {}}")
    assert f"under {tmp_path / 'data'} " in complete("data list").stdout
    assert f"under {tmp_path / 'mine'} " in complete("data list --data-root=~/mine").stdout
    assert complete("notebooks ~/laid").stdout.startswith(str(tmp_path / "laid"))
    page = Page("one", profile="~/own.yaml", runs_dir="~/runs", figures_dir="~/figures")
    assert (page.study.runs, page.figures_dir) == (tmp_path / "runs", tmp_path / "figures")
    batch = batch_in(profile="~/own.yaml", figures="~/figures")
    assert (batch.profile, batch.folder) == (tmp_path / "own.yaml", tmp_path / "figures" / "own")
    assert check_folder("~/new") == tmp_path / "new"
    assert not (tmp_path / "~").exists()


def test_home_is_known_by_its_tilde_where_python_is_called(monkeypatch, tmp_path, toy_data, toy_config):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train_teachers(toy_data, toy_config, "~/teachers", count=1, progress=False)
    config = DistillConfig(iterations=1, student_steps=1)
    made = distill(toy_data, open_teachers("~/teachers"), config, folder="~/made", progress=False).distilled
    options = EvaluateConfig(network=toy_config.network, networks=1, epochs=1)
    evaluate(made, toy_data, options, save_to="~/made/evaluation.safetensors", progress=False)
    kept = {path.name for path in (tmp_path / "made").glob("*.safetensors")}
    assert kept == {"distilled.safetensors", "evaluation.safetensors"}
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("bad", ["TMPDIR", "TORCHINDUCTOR_CACHE_DIR", ""])
def test_compiled_code_lies_where_its_compiler_finds_it(monkeypatch, tmp_path, bad):
    """PyTorch parts its command lines at blanks."""
    monkeypatch.setattr(torch, "compile", None)  # only where it would be kept is of interest
    monkeypatch.setattr(tempfile, "tempdir", None)
    given = {
        name: tmp_path / ("a b's" if name == bad else "ab") for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR")
    }
    for name, place in given.items():
        place.mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(place))
    assert compiled_kernels.__wrapped__("cpu") is None
    found = [tempfile.gettempdir(), os.environ["TMPDIR"], os.environ["TORCHINDUCTOR_CACHE_DIR"]]
    safe, own = ["/tmp", "/tmp", f"/tmp/torchinductor_{os.getuid()}"], torch.backends.cpu.get_cpu_capability()
    *places, kept = safe if bad else [str(tmp_path / "ab")] * 3
    assert found == [
        *places,
        f"{kept}/{own.lower()}",
    ]  # PyTorch mistakes another instruction set's for its own


def test_a_name_of_several_lines_or_directions_takes_one_line(tmp_path):
    root = make_tree(tmp_path / "tree", ("fox\n\x1b[1m", "\u202eשלום\u2066x"), count=10)
    (root / "fox\n\x1b[1m" / "note\n.txt").touch()
    said = complete("data check image_folder --data-root {}", root).stdout.splitlines()
    names = [line.split()[0] for line in said if line[-12:].strip().isdigit()]
    assert names == [r"fox\n\x1b[1m", r"\u202eשלום\u2066x", "all"]
    assert r"note\n.txt" in said[-1]


LEFT = [
    {"RANK": "", "WORLD_SIZE": "", "LOCAL_WORLD_SIZE": ""},
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"},
    {"WORLD_SIZE": "8", "MASTER_ADDR": "somewhere", "MASTER_PORT": "29500", "SLURM_PROCID": "3"},
    {"WORLD_SIZE": "8", "RANK": "worker-1"},
]


@pytest.mark.parametrize("left", LEFT)
def test_what_a_launcher_left_behind_launches_nothing(monkeypatch, caplog, left):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with joined(torch.device("cpu")) as found:
        assert found == ALONE
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert local_device("auto") == "auto"
    assert ("torchrun did not start this" in caplog.text) == bool(left["WORLD_SIZE"])


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("WORLD_SIZE", "two", r"\$WORLD_SIZE is 'two'; it must be a whole number: unset it"),
        ("RANK", "-1", r"\$RANK is '-1'; it must be a whole number"),
        ("RANK", "2", r"\$RANK is 2; it must be below 2: use torchrun"),
        ("MASTER_PORT", "http", r"\$MASTER_PORT is 'http'; it must be a whole number"),
    ],
)
def test_what_no_launcher_says_is_refused(monkeypatch, name, value, sentence):
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9", name: value}
    for each, text in given.items():
        monkeypatch.setenv(each, text)
    assert_refused(sentence, joined(torch.device("cpu")).__enter__)


def test_who_waits_for_others_says_so(monkeypatch, caplog):
    """As where a platform has set all that a launcher sets, for one process alone."""
    for name, text in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(ranks, "_share_cores", lambda: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", None)  # by which it would wait
    with pytest.raises(TypeError):
        joined(torch.device("cpu")).__enter__()
    assert "waiting for 2 processes, as WORLD_SIZE says" in caplog.text
