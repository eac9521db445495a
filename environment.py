"""Make, mend or complete the virtual environment of the Makefile, whole or not at all.

`python environment.py .venv/.installed-dev` leaves in .venv this checkout with its extra "dev", and the stamp
that says so. Calls wait for each other, and what an interrupted one left is made anew.

`python environment.py` prints the folder for this Python: .venv, or .venv-3.13 where .venv has another one.
"""

import fcntl
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEEDED = (3, 11)  # pyproject.toml says it too
VERSION = "{}.{}".format(*sys.version_info)


def folder_name() -> str:
    """Where an environment of this Python belongs; what uv and virtualenv make is read as well."""
    config = ROOT / ".venv" / "pyvenv.cfg"
    found = re.search(r"^version\w* *= *(\d+\.\d+)", config.read_text() if config.exists() else "", re.M)
    return ".venv" if found is None or found[1] == VERSION else f".venv-{VERSION}"


def install(stamp: Path) -> None:
    """Install what `stamp` stands for, unless it was installed from this pyproject.toml into this folder."""
    folder, extra = stamp.parent, stamp.name[len(".installed-") :]
    python, unfinished = folder / "bin" / "python", Path(f"{folder}.unfinished")
    with (ROOT / "pyproject.toml").open() as project:
        wait_for_others(project)
        wanted = f"{folder}\n{project.read()}"
        whole = usable(folder, python) and not unfinished.exists()
        if whole and stamp.exists() and stamp.read_text() == wanted:
            return
        if not whole and sys.version_info < NEEDED:
            sys.exit(f"Python {VERSION} is too old: name one of 3.11 or newer, as in make PYTHON=python3.11.")
        print(f"Installing into {folder}, which takes minutes the first time.", flush=True)
        unfinished.touch()
        if not whole:
            run(project, sys.executable, "-m", "venv", "--clear", folder)
        elif not runs(python, "import pip"):
            run(project, python, "-m", "ensurepip")
        what = f"{ROOT}[{extra}]" if extra else ROOT
        run(project, python, "-m", "pip", "install", "--quiet", "--editable", what)
        for each in (folder / ".installed", stamp):
            each.write_text(wanted)
        unfinished.unlink()


def usable(folder: Path, python: Path) -> bool:
    """Whether a Python that is not too old runs there, and no copy, which would run another checkout."""
    base = folder / ".installed"
    own = not base.exists() or base.read_text()[: len(f"{folder}\n")] in ("", f"{folder}\n")
    return own and runs(python, f"import sys; sys.exit(sys.version_info < {NEEDED})")


def runs(python: Path, code: str) -> bool:
    """Whether a Python is there and runs `code` without an error."""
    return python.exists() and not subprocess.call([str(python), "-c", code], stderr=subprocess.DEVNULL)


def run(project, *command) -> None:
    """Run a command, which holds `project` as well, lest it outlive this program; end if it fails."""
    code = subprocess.call([str(word) for word in command], pass_fds=[project.fileno()])
    if code:
        sys.exit(code)


def wait_for_others(project) -> None:
    """Hold pyproject.toml alone; on a file system without locks nothing is held."""
    try:
        fcntl.flock(project, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting for another make that installs.", flush=True)
        fcntl.flock(project, fcntl.LOCK_EX)
    except OSError:
        pass


if __name__ == "__main__":
    try:
        install((ROOT / sys.argv[1]).absolute()) if sys.argv[1:] else print(folder_name())
    except KeyboardInterrupt:
        sys.exit(130)
