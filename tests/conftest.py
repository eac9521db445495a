"""Toy data that every test shares: two classes of real 8×8 digits, and tiny teachers trained on them."""

import copy
import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from iadd_lab.baselines import descent
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.sets import DataConfig, ImageData, load_data, locate
from iadd_lab.device import Execution
from iadd_lab.store.configs import fingerprint
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig, Teachers, train_teachers
from tests.samples import load

# The same examples in every run, and none that fails because the machine is busy.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "fuzz", hypothesis.settings.get_profile("repeatable"), derandomize=False, max_examples=4000
)
hypothesis.settings.load_profile("repeatable")

# Networks this small lose more to waiting for a second thread than they gain, above all on a busy machine.
torch.set_num_threads(1)
# The same numbers on every x86-64 processor, here and in what tests start; before anything is computed.
Execution(instructions="avx2").hold()

AUGMENT = AugmentConfig(operations=("color", "crop", "cutout", "scale", "rotate"))
REAL_DATA = os.environ.get("IADD_DATA", "")  # the caller's, for tests of real data sets alone


# Tests started in the background, or by nohup, would ignore the Ctrl-C that some of them press, and the like.
for number, handler in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=6, help="how often test_kill.py kills a run (6; 25 and more in full)"
    )


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    """No test, and nothing that one starts, goes by the caller's folders, cluster or kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IADD_DATA", "IADD_CLUSTER", "JUPYTER_PATH"):
            patch.delenv(name, raising=False)
        for name in ("IADD_CACHE", "IADD_RUNS", "JUPYTER_DATA_DIR"):
            patch.setenv(name, str(tmp_path_factory.getbasetemp() / name.lower()))
        yield


@pytest.fixture
def load_real(monkeypatch):
    """Loads a data set of the caller's $IADD_DATA; where it is not there, the test is skipped."""

    def loaded(name: str, **options) -> ImageData:
        monkeypatch.setenv("IADD_DATA", REAL_DATA)
        if not REAL_DATA or locate(name) is None:
            pytest.skip(f"no {name} under IADD_DATA, or that is not set")
        return load(name, **options)

    return loaded


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
