"""Toy data that every test shares: two classes of real 8×8 digits, and tiny teachers trained on them."""

import copy
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from iadd_lab.baselines import descent
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.sets import DataConfig, ImageData, load_data
from iadd_lab.device import Execution
from iadd_lab.store.configs import fingerprint
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig, Teachers, train_teachers

# The same examples in every run, and none that fails because the machine is busy.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")

# Networks this small lose more to waiting for a second thread than they gain, above all on a busy machine.
torch.set_num_threads(1)
# The same numbers on every x86-64 processor, here and in what tests start; before anything is computed.
Execution(instructions="avx2").hold()

AUGMENT = AugmentConfig(operations=("color", "crop", "cutout", "scale", "rotate"))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Tests started in the background by a script would ignore the Ctrl-C that some of them press.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=6, help="how often test_kill.py kills a run (6; 25 and more in full)"
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache of decoded images."""
    monkeypatch.setenv("IADD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def toy_data() -> ImageData:
    """The zeros and ones among scikit-learn's digits, in the usual three splits."""
    full = load_data(DataConfig(name="digits"), progress=False)
    splits = {}
    for name in ("train", "validation", "test"):
        split = full.split(name)
        kept = split.labels < 2
        splits[name] = type(split)(split.images[kept], split.labels[kept])
    return ImageData(
        config=full.config,
        classes=full.classes[:2],
        fingerprint=fingerprint("toy", full.fingerprint),
        **splits,
    )


@pytest.fixture(scope="session")
def toy_config() -> TeacherConfig:
    """Three epochs of a ConvNet of width 4."""
    return TeacherConfig(
        network=NetworkConfig(width=4, depth=2), epochs=3, batch=64, rate=0.05, augment=AUGMENT
    )


@pytest.fixture(scope="session")
def toy_teachers(toy_data, toy_config, tmp_path_factory) -> Teachers:
    """Two teachers on `toy_data`."""
    folder: Path = tmp_path_factory.mktemp("teachers")
    return train_teachers(toy_data, toy_config, folder, count=2, progress=False)


@pytest.fixture
def networks(monkeypatch) -> list[torch.nn.Module]:
    """Copies of the networks that a descent makes, as they were made; the first only checks that it fits."""
    made, original = [], descent.network_for

    def spy(*given, **options):
        network = original(*given, **options)
        made.append(copy.deepcopy(network))
        return network

    monkeypatch.setattr(descent, "network_for", spy)
    return made
