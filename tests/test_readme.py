"""README.md taken at its word: its Python and its commands are run, or named here with what runs them."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torchvision
from distributed.cli import dask_scheduler, dask_ssh, dask_worker
from torch.distributed.run import get_args_parser

import iadd_lab
from iadd_lab.cli import Selection, app, join_pairs
from iadd_lab.distillation.result import DistillResult
from iadd_lab.notebooks.batch import chosen_pages
from tests.markdown import code_blocks, shell_commands
from tests.processes import complete
from tests.samples import make_idx, make_tree
from tests.test_cli import options

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCKS = code_blocks(README)
SHELLS = ("bash", "console", "sh")
DASK = {"scheduler": dask_scheduler.main, "worker": dask_worker.main, "ssh": dask_ssh.main}

# What makes the Python fast enough for a test: in each block that has the words on the left.
FASTER = {
    "NetworkConfig(width=32)": "NetworkConfig(width=4)",
    "    width=32,": "    width=4,",
    "iterations=50": "iterations=2",
    "student_steps=15": "student_steps=2",
    "epochs=300": "epochs=2",
}
# Blocks that need what no test has; the README must say so itself.
NOT_TRIED = {"from dask_jobqueue import": "a Slurm cluster", "from dask_kubernetes": "a Kubernetes cluster"}

# The same of commands: of an option given twice, the last one counts.
SMALLER = {
    "teach": "--size 8 --width 4 --teachers 1",
    "distill": "--iterations 2 --student-steps 2",
    "evaluate": "--epochs 2 --networks 1",
}
# Commands that no test can run; the README must say so in their line.
UNTRIED = {"dask ssh --hostfile hosts.txt --nworkers 1 --nthreads 1": "machines that can be reached by ssh"}
OTHER_OPTIONS = {"--kills"}  # of pytest on this project


SHELL = "".join(block.text for block in BLOCKS if block.language in SHELLS)
COMMANDS = shell_commands(SHELL)


def words(command: str) -> list[str]:
    """The command's words, without variables before it and & after it."""
    given = shlex.split(command.removesuffix("&"))
    return list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), given))


def is_run_here(command: str) -> bool:
    given = words(command)
    return given[0] == "iadd-lab" and given[1] in SMALLER and "--cluster" not in given


def parse(arguments: list[str]) -> dict[str, Any]:
    """What our command line makes of its arguments, or an error if it does not take them; no run."""
    return app.parse_args(join_pairs(arguments), exit_on_error=False)[1].arguments


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """An empty folder to work in, as a reader's, with small pictures in place of the real sets' ones."""
    folder = tmp_path_factory.mktemp("readme")
    for part in ("train", "test"):
        names = tuple(map(str, range(10)))
        make_tree(folder / "data" / "cifar10" / part, classes=names, count=3, shape=(32, 32, 3))
    make_idx(folder / "data", "FashionMNIST")
    make_tree(folder / "data" / "covid19", classes=("covid", "normal", "other"), shape=(112, 112))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("IADD_DATA", str(folder / "data"))
        patch.setenv("IADD_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def python(fresh):
    """The names that the README's Python leaves, executed from the first block to the last."""
    names = {"__name__": "readme"}
    for block in BLOCKS:
        if block.language == "python" and not any(first in block.text for first in NOT_TRIED):
            text = block.text
            for old, new in FASTER.items():
                text = text.replace(old, new)
            place = f"README.md, from line {block.line}"
            exec(compile(text, place, "exec", dont_inherit=True), names)
    return names


@pytest.fixture(scope="module")
def said(fresh, python):
    """What each of the commands that are run here says, in the README's order."""
    outputs = {}
    for command in filter(is_run_here, COMMANDS):
        name = words(command)[1]
        outputs[command] = complete([*words(command)[1:], *SMALLER[name].split(), "--device", "cpu"]).stdout
    return outputs


def test_the_python_distils_trains_and_compares(python, fresh):
    assert isinstance(python["network"], torchvision.models.ResNet)
    stored = DistillResult.load(fresh / "runs" / "ipc1" / "distilled.safetensors")
    assert stored.distilled.fingerprint == python["result"].distilled.fingerprint
    assert python["cell"].method == "iadd"  # the last of those compared
    assert (fresh / "runs" / "live" / "distilled.safetensors").is_file()


def test_every_replacement_still_replaces_something():
    text = "".join(block.text for block in BLOCKS if block.language == "python")
    assert [old for old in (*FASTER, *NOT_TRIED) if old not in text] == []


@pytest.mark.parametrize("first", NOT_TRIED)
def test_python_that_nobody_ran_says_so(first):
    (block,) = [block.text for block in BLOCKS if block.language == "python" and first in block.text]
    assert "not tried" in block.splitlines()[0]
    compile(block, "README.md", "exec")


def test_every_command_is_one_of_a_program_whose_words_are_checked():
    """Those of `iadd-lab` and `dask` are parsed below; `make` and TensorBoard have tests of their own."""
    assert {block.language for block in BLOCKS} <= {*SHELLS, "python"}
    assert {words(command)[0] for command in COMMANDS} <= {"iadd-lab", "dask", "make", "tensorboard"}
    for command in UNTRIED:
        (line,) = [line for line in SHELL.splitlines() if line.startswith(command)]
        assert "not tried" in line


def test_the_commands_work_in_the_order_in_which_they_stand(said, fresh):
    assert Counter(words(command)[1] for command in said) == {"teach": 3, "distill": 4, "evaluate": 3}
    for output in (output for command, output in said.items() if words(command)[1] == "evaluate"):
        assert re.search(r"learned: \d+\.\d ± \d+\.\d % test accuracy", output)
        assert re.search(r"random real: \d+\.\d ± \d+\.\d %", output)
    for run in ("cifar10/ipc1", "fashion/ipc1", "covid19/ipc1", "watched"):
        assert (fresh / "runs" / run / "distilled.safetensors").is_file()


@pytest.mark.parametrize("command", [command for command in COMMANDS if words(command)[0] == "iadd-lab"])
def test_the_command_line_takes_the_options(command):
    parse(words(command)[1:])


@pytest.mark.parametrize("command", [command for command in COMMANDS if words(command)[0] == "dask"])
def test_dask_takes_its_options(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hosts.txt").touch()
    name, *rest = words(command)[1:]
    DASK[name].make_context(name, rest)


def options_of(command: Any) -> set[str]:
    """Those of one of Dask's commands, with those below it."""
    below = getattr(command, "commands", {}).values()
    own = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return own.union({"--help"}, *map(options_of, below))


def own_options(words: str = "") -> set[str]:
    """Those of our commands that start with these words."""
    known = [names for name, names in options(app) if f"{name} ".startswith(words)]
    assert known, words
    return {"--help", "--version"}.union(*known)


def test_options_and_commands_in_the_text_exist(pytestconfig):
    """What stands between single backticks, where … and capitals leave something to the reader."""
    for name in OTHER_OPTIONS:
        pytestconfig.getoption(name)
    text = re.sub(r"^```.*?^```", "", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    known = own_options().union(OTHER_OPTIONS, *map(options_of, DASK.values()))
    known |= set(get_args_parser()._option_string_actions)  # of torchrun
    for span in re.findall(r"`([^`\n]+)`", text):
        assert set(re.findall(r"(?<!\S)--[a-z-]+", span)) <= known, span
        _, found, rest = span.partition("iadd-lab ")
        if found:
            name = re.match(r"(?:(?:data|runs) )?[a-z][a-z-]* |", f"{rest} ")[0]
            assert {word for word in rest.split() if word.startswith("--")} <= own_options(name), span


@pytest.mark.parametrize("command", [c for c in COMMANDS if words(c)[:2] == ["iadd-lab", "reproduce"]])
def test_batches_name_notebooks_and_parameters_that_there_are(command):
    given = parse(words(command)[1:]).get("selection", Selection())
    pages = chosen_pages(given.only, given.parameters(), profile=given.profile, notebooks=ROOT / "notebooks")
    assert not given.only or pages.keys() == set(given.only)


def test_tensorboard_shows_the_watched_run(said, fresh):
    from tensorboard.program import TensorBoard  # takes a second

    (command,) = [command for command in COMMANDS if words(command)[0] == "tensorboard"]
    board = TensorBoard()
    board.configure(argv=[*words(command), "--port", "0", "--load_fast", "false"])
    address = board.launch()
    for _ in range(6000):
        with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=600) as answer:
            if shown := json.load(answer):
                break
        time.sleep(0.1)
    assert "loss/weighted" in shown["."]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_what_make_runs_is_there(file):
    blocks = [block.text for block in code_blocks(ROOT / file) if block.language in SHELLS]
    targets = [words(c)[1] for c in shell_commands("".join(blocks)) if words(c)[0] == "make"]
    assert targets
    free = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for target in targets:
        listed = subprocess.check_output(["make", "-n", target], cwd=ROOT, env=free, text=True)
        for program in set(re.findall(r"\.venv/bin/([a-z-]+)", listed)):
            assert (Path(sys.executable).parent / program).exists(), f"make {target} needs {program}"
        for command in re.findall(r"\.venv/bin/iadd-lab (.*)", listed):
            parse(shlex.split(command))


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            assert (ROOT / name).exists(), link
            assert not anchor or f'<a id="{anchor}"></a>' in (ROOT / name).read_text(encoding="utf-8"), link


def test_the_extras_to_install_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"pip install -e '\.\[(\w+)\]'", README.read_text(encoding="utf-8"))
    assert set(named) == {"cluster", "tensorboard"}
    assert set(named) <= extras["optional-dependencies"].keys()


def test_it_speaks_of_the_package_s_own_names():
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"`iadd_lab\.(\w+)", text):
        assert hasattr(iadd_lab, name) or (ROOT / "iadd_lab" / f"{name}.py").exists(), name
