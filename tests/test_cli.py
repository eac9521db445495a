"""The command line end to end, and one sentence with exit code 2 for everything that is wrong."""

import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import iadd_lab
from iadd_lab.cli import app, join_pairs
from iadd_lab.data.parametrisation import MultiFormation
from iadd_lab.distillation.matching import Uniform
from iadd_lab.distillation.result import DistillResult
from iadd_lab.evaluation.protocol import Evaluation
from tests.notebook_files import write_notebook
from tests.processes import complete, ended, run

TEACH = "teach --data digits --width 4 --teachers 2 --epochs 3 --batch 256 --device cpu"
DISTILL = (
    "distill --ipc 1 --iterations 3 --student-steps 2 --teacher-epochs 1 --max-start-epoch 2 "
    "--alpha 0.02 --alpha-rate 1e-6 --device cpu"
)
ROOT = Path(__file__).parents[1]
KNOWN = ROOT / "tests" / "golden" / "commands.txt"  # options with their defaults; ! is required


def options(group, *before):
    """The words of each command below `group`, and its arguments and options by their names."""
    for name in (name for name in group if not name.startswith("-")):
        command, path = group[name], (*before, name)
        if command.default_command is None:
            yield from options(command, *path)
        else:
            found = command.assemble_argument_collection(parse_docstring=True)
            arguments = [one for one in found if one.parse and not one.children]
            yield " ".join(path), {name: one for one in arguments for name in one.names}


def default(option) -> str:
    """As the file has it."""
    value = str(option.field_info.default).replace(" ", "")
    return "!" if option.required else "" if value in ("None", "False", "()") else f"={value}"


def test_every_command_and_option_that_scripts_use_is_there():
    """Options may come, but none may go, get another name or another default."""
    found = {name: {name + default(one) for name, one in known.items()} for name, known in options(app)}
    text = re.findall(r"^(\S.*):\n((?: .*\n)+)", KNOWN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found.keys() == {name for name, _ in text}
    for name, words in text:
        assert set(words.split()) <= found[name], set(words.split()) - found[name]
        assert {word for word in found[name] if word.endswith("!")} <= set(words.split())


def test_help_and_version():
    for name, known in options(app):
        assert [option for option, one in known.items() if not one.parameter.help] == [], name
    assert re.search(r"--network .* convnet, alexnet", complete("teach --help").stdout)
    assert complete("--version").stdout.strip() == iadd_lab.__version__
    for words in ("", "data", "runs"):
        assert run(words).code == 2
    for word in ("teach", "distill", "evaluate", "reproduce", "data"):
        assert re.search(rf"^│ {word} ", complete("--help").stdout, flags=re.MULTILINE)


WRONGLY = {
    "tech": 'Unknown command "tech". Did you mean "teach"?',
    "teach --data digits --epohcs 3 --out x": "Unknown option: --epohcs. Did you mean --epochs?",
    "teach --data digits": "--out requires an argument",
    "teach --data digits --out x --epochs": "--epochs requires an argument",
    "teach --data digits --out x --epochs many": '--epochs: unable to convert "many" into int',
    "teach --data digits --out x --epochs 1.5": "--epochs is '1.5'; it must be a whole number",
    "bench --images 0x10": "--images is '0x10'; it must be a whole number",
    "teach --data digits --out x --rate nan": "rate is nan; it must be a finite number",
    "import-set x --out y --alpha -inf": "--alpha is '-inf'; it must be a finite number",
    "data fetch": "NAME requires an argument",
    "data list digits": "Unused Tokens: ['digits']",
}


def test_importing_the_package_takes_no_time_and_no_signals():
    ask = (
        "import signal, sys; before = signal.getsignal(signal.SIGINT); import iadd_lab; "
        "assert 'torch' not in sys.modules; import iadd_lab.cli; from iadd_lab import distill, evaluate; "
        "assert signal.getsignal(signal.SIGINT) is before and callable(iadd_lab.distill); "
        "assert not {'matplotlib', 'papermill', 'distributed'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", ask], check=True)
    for name in iadd_lab.__all__:
        assert getattr(iadd_lab, name) is not None
    assert {"__version__", *iadd_lab.__all__} <= set(dir(iadd_lab))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = iadd_lab.distil


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Teachers and a distilled set made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    assert "2 teachers of 3 epochs" in complete(f"{TEACH} --out {{}}", folder / "teachers").stdout
    made = complete(f"{DISTILL} --teachers {{}} --out {{}}", folder / "teachers", folder / "run").stdout
    assert re.search(r"α 0.0\d+, matching loss \d\.\d+ at first", made)
    return folder


def test_distill_leaves_the_set_and_its_pictures_and_is_then_only_read(folder):
    path = folder / "run" / "distilled.safetensors"
    pictures = [
        f"{name}.{kind}" for name in ("distilled", "before_after", "history") for kind in ("png", "pdf")
    ]
    assert {each.name for each in path.parent.iterdir()} == {path.name, *pictures}
    result = DistillResult.load(path)
    assert result.config.iterations == 3
    assert result.config.augment.operations == ("color", "crop", "cutout", "scale", "rotate")
    stamp = path.stat().st_mtime_ns
    complete(f"{DISTILL} --teachers {{}} --out {{}}", folder / "teachers", folder / "run")
    assert path.stat().st_mtime_ns == stamp


def test_a_method_is_a_bundle_of_options_and_those_given_come_first(folder, tmp_path):
    words = "--method datm_labels --label-rate 3 --parametrisation multi_formation --average 0.5 --batch 12"
    complete(f"{DISTILL} {words} --teachers {{}} --out {{}}", folder / "teachers", tmp_path)
    made = DistillResult.load(tmp_path / "distilled.safetensors")
    expected = {"matching": Uniform(), "labels": "soft", "label_rate": 3.0, "average": 0.5, "batch": 12}
    assert made.config == replace(made.config, **expected, parametrisation=MultiFormation(2))
    assert made.distilled.soft_labels.shape == (40, 10)
    said = complete("evaluate {} --epochs 2 --networks 1 --device cpu --no-random", tmp_path).stdout
    assert "a set of 1,040 numbers" in said


def test_evaluate_prints_and_stores(folder):
    path = folder / "run"  # the folder does as well
    command = "evaluate {} --epochs 3 --networks 2 --device cpu --out {}"
    said = complete(command, path, folder / "scores").stdout
    assert re.search(r"learned: \d+\.\d ± \d+\.\d % test accuracy, .* \(2 × convnet\)", said)
    assert "random real: " in said
    assert "Note: 2 of 2 networks had not learned their set when training ended" in said
    paths = sorted((folder / "scores").glob("evaluation_convnet_test_*.safetensors"))
    stored, random = map(Evaluation.load, paths)
    assert (stored.method, random.method) == ("learned", "random real")
    assert stored.config.network.width == 4  # the teachers' network, unless another is asked for
    plain = "--network alexnet --epochs 1 --networks 1 --split validation --no-random --device cpu --out {}"
    said = complete(f"evaluate {{}} {plain}", path / "distilled.safetensors", folder / "scores").stdout
    assert "(1 × alexnet)" in said
    assert "random real" not in said


def test_data_list_and_check():
    assert re.search(r"digits .* scikit-learn", complete("data list").stdout)
    assert re.search(r"all +1213 +135 +449", complete("data check digits").stdout)


def test_the_program_refuses_with_one_sentence():
    command = [sys.executable, "-m", "iadd_lab", "data", "check", "digist"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown data set 'digist' (did you mean 'digits'?): choose one of")
    assert done.stderr.count("\n") == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["iadd-lab"] == "iadd_lab.__main__:main"  # what -m calls


TAUGHT = {
    "--data cifar": "unknown data set 'cifar' (did you mean 'cifar10'?)",
    "--network resnet": "unknown network 'resnet' (did you mean 'resnet18'?)",
    "--teachers 0": "count is 0; it must be a whole number of at least 1",
    "--depth 9": "depth",
    "--augment flop": "'flop'",
    "--device cuda:99": "device is 'cuda:99'",
    "--train-limit 3": "train_limit is 3",
}


DISTILLED = {
    "--ipc 500": "ipc is 500, but class",
    "--max-start-epoch 3 --teacher-epochs 2": "reach epoch 4, but the teachers have 3 epochs",
    "--weight-rate -1": "rate is -1.0",
    "--matching uniform --literal": "settings of matching 'learned' were given, but matching 'uniform'",
    "--prune 0.2": "leave them out, or use --matching pruned",
    "--matching learnt": "unknown matching 'learnt' (did you mean 'learned'?)",
    "--matching pruned --prune 1": "fraction is 1.0",
    "--matching uniform --mean-over tensor": "settings of matching 'learned' were given, but matching",
    "--device mps": "device is 'mps': expected auto, cpu, cuda or cuda:N",
    "--mean-over tensor --literal": "goes only with granularity 'parameter' and normalised True",
    "--method mtd": "unknown method 'mtd' (did you mean 'mtt'?): choose one of datm_labels, ddpp,",
    "--method mtt --weight-rate 0.1": "settings of matching 'learned' were given, but matching 'uniform'",
    "--factor 2": "leave them out, or use --parametrisation multi_formation",
    "--parametrisation multi_formation --factor 3": "factor is 3, but images have 8 pixels a side",
    "--batch 11": "batch is 11, but there are only 10 distilled images",
    "--data cifar10": "--data is 'cifar10', but the teachers in",
    "--network alexnet": "--network is 'alexnet', but the teachers in",
    "--preprocess zca": "--preprocess is 'zca', but the teachers in",
}


# {at}/file is a file, {at}/cut.safetensors the beginning of one.
NAMED = {
    "evaluate {run} --width 0": "width is 0",
    "evaluate {run} --network vgg11 --width 8": "only convnet has a width",
    "evaluate {run} --out {at}/file": "{at}/file is a file, but a folder is needed",
    "evaluate {teachers}/teachers.safetensors": "is of kind 'teachers', but 'distilled' was expected",
    "evaluate {at}/distilled.safetensors": "{at}/distilled.safetensors is not there",
    "evaluate {at}/cut.safetensors": "{at}/cut.safetensors is not a whole safetensors file",
    f"{DISTILL} --teachers {{at}} --out {{at}}/made": "no teachers in",
    f"{DISTILL} --teachers {{teachers}} --out {{at}}/file": "{at}/file is a file, but a folder is needed",
    f"{TEACH} --out {{at}}/file": "{at}/file is a file, but a folder is needed",
    "teach --data fashion_mnist --data-root {at} --out {at}/made": "iadd-lab data fetch fashion_mnist",
}
REFUSED = WRONGLY | NAMED
REFUSED |= {f"{TEACH} {option} --out {{at}}/made": sentence for option, sentence in TAUGHT.items()}
REFUSED |= {
    f"{DISTILL} {option} --teachers {{teachers}} --out {{at}}/made": sentence
    for option, sentence in DISTILLED.items()
}


@pytest.mark.parametrize(("command", "sentence"), REFUSED.items())
def test_bad_input_is_refused_before_any_work(folder, tmp_path, command, sentence):
    (tmp_path / "file").touch()
    (tmp_path / "cut.safetensors").write_bytes((folder / "run/distilled.safetensors").read_bytes()[:-10])
    places = {"at": tmp_path, "run": folder / "run", "teachers": folder / "teachers"}
    assert sentence.format(**places) in ended(2, command, **places)
    assert {path.name for path in tmp_path.glob("made/*")} <= {"teachers.safetensors"}


def test_more_random_images_than_there_are_is_refused_before_training(folder, tmp_path):
    noisy = f"{DISTILL} --ipc 130 --initial-images noise --teachers {{}} --out {{}}"
    complete(noisy, folder / "teachers", tmp_path)
    assert "ipc is 130, but class" in ended(2, "evaluate {}", tmp_path)


def test_a_divergence_ends_with_code_one_and_what_to_lower(folder, tmp_path):
    command = f"{DISTILL} --alpha-rate 1.0 --teachers {{}} --out {{}}"
    sentence = ended(1, command, folder / "teachers", tmp_path)
    assert re.match("stopped: alpha would fall.*lower alpha_rate", sentence)


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """The start of a `reproduce` command over one notebook that prints a parameter."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    parameters = 'side = 2\nword = ""\nfigures_dir = ""'
    write_notebook(Path("notebooks", "good.ipynb"), "print(word, 3 / side)", parameters=parameters)
    return "reproduce --notebooks notebooks --figures made --runs runs"


def test_reproduce_takes_parameters_as_papermill_does_and_fails_with_code_one(batch, tmp_path):
    said = complete(f"{batch} -p side -4 --jobs 1 --parameter word=a=b --keep").stdout
    executed, kept = (tmp_path / folder / "quick" / "good.ipynb" for folder in ("made", "figures"))
    assert "copied to figures/quick" in said
    assert kept.read_bytes() == executed.read_bytes()
    assert "a=b -0.75" in executed.read_text()
    assert "1 of 1 notebooks up to date" in complete(f"{batch} -p side -4 -p word a=b").stdout
    failed = run(f"{batch} --only good -p side 0")
    assert failed.code == 1
    assert failed.stderr.splitlines()[-1] == "failed: good"
    assert "Traceback" not in failed.stdout + failed.stderr
    assert executed.with_name("good.failed.ipynb").exists()


REPRODUCED = {
    "-p side": "parameter 'side' has no value: write -p NAME VALUE or -p NAME=VALUE",
    "-p side -p word a": "parameter 'side' has no value",
    "-p runs_dir /tmp": "runs_dir is set by the batch: use --runs",
    "--only goood": "unknown notebook 'goood' (did you mean 'good'?)",
    "--profile quik": "unknown profile 'quik' (did you mean 'quick'?)",
    "--jobs 0": "jobs is 0; it must be a whole number of at least 1",
}


def test_reproduce_refuses_before_it_executes_anything(batch, tmp_path):
    for options, sentence in REPRODUCED.items():
        assert sentence in ended(2, f"{batch} {options}")
    assert [path.name for path in tmp_path.iterdir()] == ["notebooks"]


words = st.text("ab=-1 ", max_size=4).filter(lambda text: text != "-p" and not text.startswith("--"))


@given(st.lists(st.tuples(st.sampled_from(["side", "word"]), words, st.booleans()), min_size=1))
def test_both_ways_to_write_a_parameter_are_one(pairs):
    written = [["-p", name, value] if apart else ["-p", f"{name}={value}"] for name, value, apart in pairs]
    command = ["plan", *(piece for pieces in written for piece in pieces), "--jobs", "2"]
    found = app.parse_args(join_pairs(command), exit_on_error=False)[1].arguments["selection"]
    assert found.parameter == tuple(f"{name}={value}" for name, value, _ in pairs)
    assert found.jobs == 2


def test_plan_takes_what_reproduce_takes(batch):
    said = complete("plan --notebooks notebooks -p side 3 --jobs 2 --device cpu").stdout
    assert said.startswith("1 notebooks, 2 at once")
    assert "no_such" in ended(2, "plan --notebooks notebooks -p no_such 1")


def test_notebooks_are_laid_out_and_none_is_overwritten(tmp_path):
    (tmp_path / "quickstart.ipynb").write_text("mine")
    others = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} - {"quickstart.ipynb"}
    assert {Path(line).name for line in complete("notebooks {}", tmp_path).stdout.splitlines()} == others
    assert others < {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "quickstart.ipynb").read_text() == "mine"
