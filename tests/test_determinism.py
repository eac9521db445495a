"""Same seed, same machine, same bits: in every process, whatever ran before, and in whatever order."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import iadd_lab as lab
from iadd_lab.store.artefacts import tensor_fingerprint
from iadd_lab.study.study import METHODS, Study
from tests.conftest import AUGMENT
from tests.samples import load
from tests.test_study import TINY

NETWORK = lab.NetworkConfig(width=4, depth=2)
TEACHER = lab.TeacherConfig(network=NETWORK, epochs=3, preprocess="zca", momentum=0.9, augment=AUGMENT)
SCALE = {"iterations": 3, "student_steps": 3, "teacher_epochs": 1, "max_start_epoch": 2, "segments": 2}
DISTILL = lab.DistillConfig(**SCALE, batch=4, alpha_rate=1e-6, image_rate=10.0, augment=AUGMENT)
DISTILLED = {
    "mtt": replace(DISTILL, matching=lab.Uniform()),
    "ddpp": replace(DISTILL, matching=lab.Pruned(), gradient="full"),
    "iadd": replace(DISTILL, matching=lab.Learned()),
    "adam": replace(DISTILL, image_optimizer="adam", image_rate=0.1, initial_images="noise"),
}


class Laboratory:
    """Data and teachers, made anew in a folder, and everything that depends on them."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self.data = load("digits", seed=seed)
        config, place = replace(TEACHER, seed=seed), folder / f"teachers{seed}"
        self.teachers = lab.train_teachers(self.data, config, place, count=2, progress=False)
        self.study = Study(folder / f"runs{seed}", device="cpu", threads=1, progress=False)

    def jobs(self) -> dict:
        """What to compute, by name; each gives named tensors."""
        kinds = {"split": ("train", "validation", "test"), "teacher": range(2), "distill": DISTILLED}
        kinds |= {"cell": METHODS}
        pairs = [(kind, name) for kind, names in kinds.items() for name in names]
        return {f"{kind} {name}": partial(getattr(self, kind), name) for kind, name in pairs}

    def split(self, name):
        split = self.data.split(name)
        return {"images": split.images, "labels": split.labels}

    def teacher(self, number):
        return {"trajectory": self.teachers.trajectory(number)}

    def distill(self, name):
        config = replace(DISTILLED[name], seed=self.seed)
        made = lab.distill(self.data, self.teachers, config, progress=False)
        history = torch.tensor([made.history.loss, made.history.alpha], dtype=torch.float64)
        return {"images": made.images, "raw": made.raw, "importance": made.importance, "history": history}

    def cell(self, method):
        setting = replace(TINY, ipc=2, seed=self.seed)
        made = [held.images for held in self.study.sets(setting, method)]
        cell = self.study.cell(setting, method)
        return {"confusion": cell.evaluation.confusion, **{str(n): i for n, i in enumerate(made)}}


def fingerprints(folder: Path, *, backwards: bool = False) -> dict[str, str]:
    """Of everything that is computed, by name."""
    jobs = Laboratory(folder).jobs()
    names = reversed(jobs) if backwards else jobs
    before = torch.get_rng_state()
    found = {name: tensor_fingerprint(jobs[name]()) for name in names}
    assert torch.equal(torch.get_rng_state(), before)  # nothing draws from the global generator
    return found


def disturb(folder: Path) -> None:
    """Draw from every global generator, compute with other seeds, change what is changed back."""
    random.seed(3)
    np.random.seed(4)  # noqa: NPY002
    torch.manual_seed(5)
    torch.rand(7)
    torch.set_num_threads(2)
    other = Laboratory(folder, seed=1)
    for name in ("distill iadd", "cell dsa", "cell random", "cell herding"):
        other.jobs()[name]()
    torch.set_num_threads(1)


def in_a_process(folder: Path, call: str, *, hash_seed: int) -> dict[str, str]:
    """What `call`, which knows `folder` and all of this module, gives in a new process."""
    modules = "import json, pathlib, sys\nfrom tests.test_determinism import *"
    source = f"{modules}\nfolder = pathlib.Path(sys.argv[1])\nprint(json.dumps({call}))"
    command = [sys.executable, "-c", source, str(folder)]
    where = {"cwd": Path(__file__).parent.parent, "env": os.environ | {"PYTHONHASHSEED": str(hash_seed)}}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **where)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Fingerprints from a new process that did nothing else."""
    return in_a_process(tmp_path_factory.mktemp("alone"), "fingerprints(folder)", hash_seed=1)


def test_another_process_that_did_other_things_first_and_in_another_order(alone, tmp_path):
    call = "disturb(folder) or fingerprints(folder, backwards=True)"
    assert in_a_process(tmp_path, call, hash_seed=2) == alone


def test_this_process_after_whatever_ran_before(alone, tmp_path):
    disturb(tmp_path)
    assert fingerprints(tmp_path, backwards=True) == alone


def test_the_fingerprints_tell_results_apart(alone, tmp_path):
    """Else they would prove nothing."""
    results = [value for name, value in alone.items() if "cell" not in name]
    assert len(set(results)) == len(results)
    other = Laboratory(tmp_path, seed=1)
    for name in ("split train", "teacher 0", "distill iadd", "cell dm", "cell random"):
        assert tensor_fingerprint(other.jobs()[name]()) != alone[name]
