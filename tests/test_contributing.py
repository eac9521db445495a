"""The recipes of CONTRIBUTING.md, taken from it as they stand, executed, and their results used for real."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from iadd_lab.data.readers import read_image_folder
from iadd_lab.data.sets import DATASETS, locate
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import MATCHINGS
from iadd_lab.distillation.result import DistillResult
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.notebooks import profiles
from iadd_lab.study.methods import METHODS
from iadd_lab.study.study import Study
from iadd_lab.training.networks import NETWORKS, NetworkConfig, build_network
from iadd_lab.training.teachers import train_teachers
from tests import test_notebooks as rules
from tests.markdown import code_blocks
from tests.processes import complete
from tests.samples import load, make_tree, noise
from tests.test_study import TINY

ROOT = Path(__file__).parent.parent
BLOCKS = code_blocks(ROOT / "CONTRIBUTING.md")
REGISTRIES = (MATCHINGS, METHODS, DATASETS, NETWORKS)
RUN = DistillConfig(
    ipc=1,
    iterations=2,
    student_steps=2,
    teacher_epochs=1,
    max_start_epoch=2,
    alpha=0.02,
    alpha_rate=1e-6,
)


def recipe(heading: str) -> str:
    """The Python of the recipe under `heading`."""
    (code,) = [block.text for block in BLOCKS if (block.language, block.heading) == ("python", heading)]
    return code


def follow_recipe(heading: str) -> dict[str, object]:
    """What the recipe's code leaves, executed as a reader's own module would."""
    names: dict[str, object] = {"__name__": __name__}
    exec(compile(recipe(heading), f"CONTRIBUTING.md, {heading}", "exec", dont_inherit=True), names)
    return names


@pytest.fixture(autouse=True)
def _registries():
    """What a recipe enters is gone after its test."""
    before = [(registry, dict(registry)) for registry in REGISTRIES]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def test_the_recipes_are_there_and_short():
    headings = ["A matching method", "A data set", "A network", "A notebook"]
    assert [block.heading for block in BLOCKS if block.language == "python"] == headings
    for heading in headings:
        assert len([line for line in recipe(heading).splitlines() if line.strip()]) <= 20, heading


def test_a_new_matching_distils_and_is_a_row_of_tables(toy_data, toy_teachers, tmp_path):
    magnitude = follow_recipe("A matching method")["Magnitude"]()
    options = {"folder": tmp_path / "run", "progress": False}
    result = distill(toy_data, toy_teachers, replace(RUN, matching=magnitude), **options)
    assert DistillResult.load(tmp_path / "run" / "distilled.safetensors").config.matching == magnitude
    assert 0 < result.importance.min() < result.importance.max()
    assert result.importance.square().mean() == pytest.approx(1)
    plain = distill(toy_data, toy_teachers, replace(RUN, matching=MATCHINGS["uniform"]()), progress=False)
    assert not torch.equal(result.distilled.images, plain.distilled.images)
    study = Study(tmp_path / "runs", device="cpu", threads=1, progress=False)
    cells = study.cells([TINY], ["mtt", "magnitude"])
    assert [cell.title for cell in cells] == ["MTT", "Magnitude"]
    assert study.result(TINY, "magnitude").config.matching == magnitude


def test_a_new_matching_is_on_the_command_line(toy_config, tmp_path):
    follow_recipe("A matching method")
    places = tmp_path / "teachers", tmp_path / "run"
    train_teachers(load("digits"), toy_config, places[0], count=1, progress=False)
    small = "--iterations 2 --student-steps 2 --teacher-epochs 1 --max-start-epoch 2 --alpha-rate 1e-6"
    complete(f"distill --teachers {{}} --out {{}} --matching magnitude {small}", *places)
    assert DistillResult.load(places[1] / "distilled.safetensors").config.matching.name == "magnitude"


def test_a_new_data_set_loads_and_trains_a_teacher(tmp_path):
    follow_recipe("A data set")
    arrays = {}
    for part, count in (("train", 40), ("test", 10)):
        arrays[f"{part}_images"] = noise((count, 28, 28), seed=count)
        arrays[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    (tmp_path / "medmnist").mkdir()
    np.savez(tmp_path / "medmnist" / "pneumoniamnist.npz", **arrays)
    data = load("pneumonia", tmp_path)
    assert (data.classes, data.channels, data.size) == (("normal", "pneumonia"), 1, 28)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    assert np.array_equal(data.test.images[:, 0].numpy(), arrays["test_images"])
    assert load("pneumonia", tmp_path, size=16, channels=3).train.images.shape == (36, 3, 16, 16)
    small = "--width 4 --teachers 1 --epochs 1"
    trained = complete(
        f"teach --data pneumonia --data-root {{}} {small} --out {{}}", tmp_path, tmp_path / "out"
    )
    assert trained.stdout.startswith("1 teachers of 1 epochs")
    assert "PneumoniaMNIST" in complete("data list --data-root {}", tmp_path).stdout


def test_a_folder_per_class_needs_an_entry_only(tmp_path, monkeypatch):
    follow_recipe("A data set")
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    leaves = replace(DATASETS["pneumonia"], reader=read_image_folder, folders=("leaves",), channels=3)
    monkeypatch.setitem(DATASETS, "leaves", leaves)
    assert locate("leaves") is None
    make_tree(tmp_path / "leaves", classes=("ash", "oak"), count=10)
    assert load("leaves").classes == ("ash", "oak")
    assert locate("leaves") == tmp_path / "leaves"


def test_a_new_network_trains_distils_and_evaluates(toy_data, toy_config, tmp_path):
    follow_recipe("A network")
    config = NetworkConfig(name="lenet")
    assert config.title == "lenet"
    for channels, size in ((1, 28), (3, 32)):  # and below, (1, 8)
        network = build_network(config, channels=channels, size=size, classes=10, seed=0)
        assert network(torch.rand(2, channels, size, size)).shape == (2, 10)
    taught = replace(toy_config, network=config)
    teachers = train_teachers(toy_data, taught, tmp_path / "teachers", count=1, progress=False)
    result = distill(toy_data, teachers, RUN, progress=False)
    settings = EvaluateConfig(network=config, networks=2, epochs=60, split="validation")
    evaluation = evaluate(result.distilled, toy_data, settings, progress=False)
    assert evaluation.accuracies.mean() > 0.7  # of zeros and ones
    study = Study(tmp_path / "runs", device="cpu", threads=1, progress=False)
    (cell,) = study.cells([TINY], ["random"], networks=[config])
    assert cell.network.title == "lenet"


def test_a_new_notebook_runs_on_every_profile_and_keeps_the_rules(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    follow_recipe("A notebook")
    written = tmp_path / "notebooks" / "which_images.ipynb"
    (entry,) = [yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml"]
    own = yaml.safe_load(Path(profiles.__file__).with_name("quick.yaml").read_text(encoding="utf-8"))
    own["pages"] |= entry
    Path("own.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    values = {"runs_dir": str(tmp_path / "runs"), "figures_dir": str(tmp_path), "profile": "own.yaml"}
    names: dict[str, object] = {}
    for cell in rules.code_cells(written):
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= values
    assert {path.suffix for path in tmp_path.glob("which_images.*")} == {".pdf", ".png"}
    for rule in (
        rules.test_the_kernel_and_the_first_cell,
        rules.test_parameters_are_literals_in_one_tagged_cell,
        rules.test_every_parameter_is_used_and_none_is_written,
        rules.test_cells_are_short_and_hold_no_definitions,
    ):
        rule(written)
