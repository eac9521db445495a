"""The plan: what settings, methods and seeds come to, without computing any of it."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from iadd_lab.notebooks.batch import chosen_pages
from iadd_lab.notebooks.notebook import notebook_folder
from iadd_lab.notebooks.profiles import PROFILES
from iadd_lab.study import plan as planning
from iadd_lab.study.methods import METHODS
from iadd_lab.study.plan import describe, plan, stored_cells
from iadd_lab.study.settings import Setting
from iadd_lab.study.study import Study
from iadd_lab.training.fast.compiling import flops
from iadd_lab.training.networks import NetworkConfig
from tests.test_readers import make_tiny
from tests.test_study import TINY


@dataclass(frozen=True)
class Shown:
    """What a notebook of these settings would show."""

    settings: tuple[Setting, ...] = (TINY,)
    methods: tuple[str, ...] = ("mtt", "iadd")
    how: dict[str, Any] = field(default_factory=lambda: {"threads": 1})
    own: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def _in_a_moment(monkeypatch):
    monkeypatch.setattr(planning, "_SECONDS", 0.0)
    monkeypatch.setattr(planning, "_TIMED", 1e7)


def planned(*pages, source="lab.cells()"):
    return plan({str(n): (page, source) for n, page in enumerate(pages)}, device="cpu")


def kinds(*pages, **options):
    """How many of each kind these notebooks need."""
    return planned(*pages, **options).groupby("kind")["count"].sum().to_dict()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_notebook_of_every_profile_is_planned(profile):
    pages = chosen_pages(profile=profile, notebooks=notebook_folder())
    found = plan(pages, device="cpu")
    assert {*found["kind"]} == {"teachers", "distillation", "evaluation"}
    assert (found[["count", "flops", "seconds", "disk", "memory"]] > 0).all(axis=None)
    with_settings = {name for name, (page, _) in pages.items() if page and page.settings}
    assert len(with_settings) >= 14
    assert {*found["notebook"]} <= with_settings


def test_the_plan_of_a_study_is_what_the_study_leaves(tmp_path):
    """Teachers, sets and evaluations one by one, and the bytes of all within 10 %."""
    study = Study(tmp_path, device="cpu", threads=1, progress=False)
    study.cells([TINY], METHODS)
    found = planned(Shown(methods=tuple(METHODS))).groupby("kind").sum(numeric_only=True)
    count = found["count"]
    assert count["teachers"] == len(list(tmp_path.glob("teachers-*/teacher_*")))
    assert count["distillation"] == len(list(tmp_path.glob("digits-*")))
    networks = TINY.evaluation_networks
    assert count["evaluation"] == networks * len(list(tmp_path.glob("evaluations/*.safetensors")))
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert found["disk"].sum() == pytest.approx(stored, rel=0.1)
    # By formulas: one pass forward and two back, of every image in every epoch.
    network, images = study.teachers(TINY).network(0), len(study.data(TINY).train)
    epochs, each = TINY.teacher_training_epochs, flops(network, channels=1, size=8)
    assert found.loc["teachers", "flops"] == TINY.teacher_count * epochs * 3.0 * images * each
    parameters = sum(parameter.numel() for parameter in network.parameters())
    trajectories = TINY.teacher_count * ((epochs + 1) * parameters * 4 + 2500)
    assert found.loc["teachers", "disk"] == trajectories


def test_cells_are_there_when_sets_and_every_evaluation_are(tmp_path):
    two = Shown(methods=("mtt", "random"), own={"other_networks": ["alexnet"]})
    pages = {"a": (Shown(), 'cells(split="validation")'), "b": (Shown(), "result("), "c": (None, "cells(")}
    pages |= {"d": (two, "cells("), "e": (Shown(), "snapshots(")}

    def missing():
        files = list(tmp_path.rglob("*"))
        found = stored_cells(pages, runs=tmp_path / "runs", device="cpu")
        assert list(tmp_path.rglob("*")) == files  # nothing is made, not even the folder
        assert (found["of"] - found["there"]).equals(found["missing"].str.count(r"\w+"))
        return dict(zip(found["notebook"], found["missing"], strict=True))

    assert missing() == {"a": "MTT, IADD", "b": "MTT, IADD", "d": "MTT, Random", "e": "MTT, IADD"}
    study = Study(tmp_path / "runs", device="cpu", threads=1, progress=False)
    study.cells([TINY], ["mtt", "random"], networks=[None, NetworkConfig("alexnet")])
    assert missing() == {"a": "MTT, IADD", "b": "IADD", "d": "", "e": "MTT, IADD"}
    study.cells([TINY], ["mtt", "iadd"], split="validation")
    study.snapshots(TINY, "mtt")
    assert missing() == {"a": "IADD", "b": "", "d": "", "e": "IADD"}


def test_what_is_needed_follows_settings_methods_seeds_and_source():
    networks, taught = TINY.evaluation_networks, {"teachers": TINY.teacher_count}
    both = taught | {"distillation": 2, "evaluation": 2 * networks}
    assert kinds(Shown()) == kinds(Shown(), Shown()) == both
    assert kinds(Shown(), source="page.study.result()") == taught | {"distillation": 2}
    assert kinds(Shown(methods=("random",))) == {"evaluation": networks}
    more = Shown((replace(TINY, seeds=2), replace(TINY, iterations=TINY.iterations + 1)), ("mtt",))
    assert kinds(more) == taught | {"distillation": 3, "evaluation": 3 * networks}
    assert kinds(Shown(methods=("mtt",)), more) == kinds(more)  # the first of two seeds is the same
    without = replace(TINY, distribution_matching_iterations=None)
    assert kinds(Shown((without,), ("dm", "whole"))) == {"evaluation": networks}
    assert kinds(Shown((TINY, replace(TINY, ipc=2)), ("whole",))) == {"evaluation": networks}
    others = planned(Shown(own={"other_networks": ["vgg11"], "network_epochs": {"vgg11": 7}}))
    longer = others["title"].str.contains("VGG11.* 7 epochs")
    assert longer.sum() == 2
    assert others[longer]["count"].sum() == 2 * networks
    snapshots = min(TINY.iterations + 1, 11)
    assert kinds(Shown(), source="lab.snapshots()")["evaluation"] == 2 * snapshots * networks


def test_part_of_tiny_imagenet_is_planned_as_it_lies_there(monkeypatch, tmp_path):
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    page = Shown((replace(TINY, data_name="tiny_imagenet", size=8),), ("random",))
    for images in (200, 2):
        planning._shape.cache_clear()
        assert f", {images} images, " in planned(page)["title"][0]
        make_tiny(tmp_path)


def test_the_text_has_tasks_time_disk_memory_and_what_is_missing(tmp_path):
    found = plan({"a": (Shown(), "cells()"), "b": (Shown(), "cells()"), "c": (None, "")}, device="cpu")
    assert {*found["notebook"]} == {"a"}  # the others find everything computed
    found["seconds"] *= 3600 / found["seconds"].sum()
    cells = stored_cells({"a": (Shown(), "cells()")}, runs=tmp_path / "none", device="cpu")
    text = describe(found, cells, notebooks=3, jobs=2)
    assert re.search(r"memory .*\n\n.*\n *a *Digits, IPC 1 *0 *2 *MTT, IADD$", text, flags=re.DOTALL)
    for part in ("PFLOP", "teachers", "MTT, Digits, IPC 1", "disk ", " MB of it trajectories", "missing"):
        assert part in text
    assert "time    1.00 h with 2 at once; 1.01 h one after another" in text
