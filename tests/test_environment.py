"""The virtual environment of the Makefile: whole or not at all, whatever is there. venv and pip are stubs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import wait_until

ROOT = Path(__file__).parents[1]
OWN, OTHER = "{}.{}".format(*sys.version_info), "3.9"  # versions of Python
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# `python -m NAME` says in the log what it was asked for; there it may kill who asked, or wait for a file.
STUB = """
import os, pathlib, signal, sys, time
place = pathlib.Path(__file__).parent
asked, name = __name__ == "__main__", pathlib.Path(__file__).stem
if asked:
    with open(place / "log", "a") as log:
        print(name, *sys.argv[1:], file=log)
    if os.environ.get("KILLED_IN") == name:
        sys.exit(os.kill(os.getppid(), signal.SIGKILL))
    while os.environ.get("WAITING_IN") == name and not (place / "go").exists():
        time.sleep(0.01)
"""
STUBS = {
    "venv": """
    folder = pathlib.Path(sys.argv[-1])
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "python").unlink(missing_ok=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    home, version = pathlib.Path(sys._base_executable).parent, "{}.{}.0".format(*sys.version_info)
    (folder / "pyvenv.cfg").write_text(f"home = {home}\\nversion = {version}\\n")
    (folder / "has_pip").touch()
""",
    "pip": """
    command = pathlib.Path(sys.prefix) / "bin" / "iadd-lab"
    command.write_text("#!/bin/sh\\necho runs")
    command.chmod(0o755)
elif not (pathlib.Path(sys.prefix) / "has_pip").exists():
    raise ImportError
""",
    "ensurepip": """
    (pathlib.Path(sys.prefix) / "has_pip").touch()
""",
}


@pytest.fixture
def checkout(tmp_path):
    """What `make` needs, in a folder of its own; beside it the stubs."""
    for name, code in STUBS.items():
        (tmp_path / f"{name}.py").write_text(f"{STUB}if asked:{code}")
    (tmp_path / "own").mkdir()
    for name in ("Makefile", "environment.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "own")
    return tmp_path / "own"


def start(checkout, *words, **variables) -> subprocess.Popen:
    """`make reproduce`, or another target, by the Python of this test."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    options = {"cwd": checkout, "env": free | {"PYTHONPATH": str(checkout.parent), **variables}}
    words = ["make", *(words or ["reproduce"]), f"PYTHON={sys.executable}"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def make(checkout, *words, **variables) -> str:
    """What it says; it must end well."""
    process = start(checkout, *words, **variables)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def log(checkout) -> list[str]:
    """The programs that were asked for something, one after the other."""
    path = checkout.parent / "log"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_it_is_installed_once_and_again_for_more_or_for_another_list_of_what_is_needed(checkout):
    assert make(checkout).endswith("runs\n")
    make(checkout)
    assert log(checkout) == ["venv", "pip"]
    make(checkout, ".venv/.installed-dev")
    make(checkout)
    assert log(checkout) == ["venv", "pip", "pip"]
    assert (checkout.parent / "log").read_text().endswith(f"{checkout}[dev]\n")
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# one more\n")
    make(checkout)
    assert log(checkout) == ["venv", "pip", "pip", "pip"]
    assert sorted(path.name for path in checkout.iterdir() if path.name.startswith(".")) == [".venv"]


@pytest.mark.parametrize("where", ["venv", "pip"])
def test_what_a_killed_installation_left_is_made_anew(checkout, where):
    process = start(checkout, KILLED_IN=where)
    process.communicate()
    assert process.returncode != 0
    before = log(checkout)
    assert make(checkout).endswith("runs\n")
    assert log(checkout) == [*before, "venv", "pip"]


def spoil(folder: Path, how: str) -> None:
    """Leave what others leave in place of an environment."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / ".installed").unlink(missing_ok=True)
    python = folder / "bin" / "python"
    if how == "no pip":  # as uv makes it
        (folder / "has_pip").unlink()
    elif how == "copied":
        (folder / ".installed").write_text("/another/place/.venv\n")
    else:
        python.unlink()
        if how == "too old":
            python.write_text("#!/bin/sh\nexit 1")
            python.chmod(0o755)


@pytest.mark.parametrize("how", ["no pip", "too old", "no Python", "copied"])
def test_what_others_left_is_mended(checkout, how):
    make(checkout)
    spoil(checkout / ".venv", how)
    assert make(checkout).endswith("runs\n")
    assert log(checkout)[2:] == ["ensurepip" if how == "no pip" else "venv", "pip"]


def test_the_second_of_two_waits_for_the_first(checkout):
    first = start(checkout, WAITING_IN="pip")
    wait_until(lambda: "pip" in log(checkout))
    second = start(checkout)
    assert second.stdout.readline() == "Waiting for another make that installs.\n"
    (checkout.parent / "go").touch()
    for process in (first, second):
        assert process.communicate()[0].endswith("runs\n")
    assert log(checkout) == ["venv", "pip"]


def test_another_python_has_a_folder_beside_that_of_this_one(checkout):
    (checkout / ".venv").mkdir()
    for key, version, folder in (("version", OWN, ".venv"), ("version_info", OTHER, f".venv-{OWN}")):
        (checkout / ".venv" / "pyvenv.cfg").write_text(f"home = /usr/bin\n{key} = {version}.7\n")
        assert f"\n{folder}/bin/ruff check" in make(checkout, "-n", "test")


def test_a_python_that_is_too_old_is_refused_in_one_sentence(checkout):
    code = "import runpy, sys; sys.version_info = (3, 9, 1); sys.argv = ['', '.venv/.installed']\n"
    code += "runpy.run_path('environment.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Python 3.9 is too old: name one of 3.11 or newer, as in make PYTHON=python3.11.\n"
    assert not list(checkout.glob(".venv*"))
