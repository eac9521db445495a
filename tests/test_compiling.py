"""When kernels are compiled, what happens where that fails, and that compiled ones compute the same."""

import dataclasses
import functools
import logging
import math
import shutil
import threading
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from iadd_lab.training.fast import winograd
from iadd_lab.training.fast.compiling import PLAIN, WORTH_COMPILING, choose_kernels, compiled_kernels, flops
from iadd_lab.training.fast.losses import FusedStudentLoss
from iadd_lab.training.networks import ImageClassifier, NetworkConfig, build_network
from tests.test_kernels import assert_near

ENOUGH = WORTH_COMPILING["cpu"]
FUNCTIONS = {function for function in dataclasses.astuple(PLAIN) if callable(function)}


@pytest.fixture(autouse=True)
def _fresh_cache():
    """What one test compiled, or failed to compile, is no other test's."""
    compiled_kernels.cache_clear()
    yield
    compiled_kernels.cache_clear()


@pytest.fixture
def compiled(monkeypatch):
    """The functions given to `torch.compile`, which here returns them as they are."""
    functions = []

    def compile_nothing(function, **options):
        functions.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return functions


BELOW = math.nextafter(ENOUGH, 0)


@pytest.mark.parametrize(
    ("mode", "work", "expected"),
    [("never", 1e30, False), ("auto", BELOW, False), ("auto", ENOUGH, True), ("always", 0, True)],
)
def test_long_runs_are_compiled_once_for_the_whole_process(mode, work, expected, compiled):
    kernels = choose_kernels(mode, work=work)
    if not expected:
        assert kernels is PLAIN
        assert not compiled
        return
    assert (kernels.compiled, kernels.transforms, kernels.graphs) == (True, True, False)
    assert set(compiled) == FUNCTIONS
    assert choose_kernels("always", work=0) is kernels
    assert len(compiled) == len(FUNCTIONS)


UNSUPPORTED = RuntimeError("this Python is not supported\nand more lines")


@pytest.mark.parametrize(
    ("at_once", "error", "reason"),
    [
        (True, UNSUPPORTED, "this Python is not supported"),
        (False, UNSUPPORTED, "this Python is not supported"),
        (False, NotImplementedError(), "NotImplementedError"),
    ],
)
def test_without_a_compiler_kernels_are_plain_and_the_log_says_so_once(
    at_once, error, reason, monkeypatch, caplog
):
    fail = Mock(side_effect=error)
    monkeypatch.setattr(torch, "compile", fail if at_once else lambda function, **options: fail)
    with caplog.at_level(logging.INFO, logger="iadd_lab"):
        assert choose_kernels("always", work=0) is PLAIN
        assert choose_kernels("auto", work=ENOUGH) is PLAIN
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"({reason})" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_gpu_pays_later_and_convolves_with_its_own_libraries(compiled, monkeypatch):
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(shape) + 1)  # there may be no GPU
    assert choose_kernels("auto", work=ENOUGH, device="cuda") is PLAIN
    kernels = choose_kernels("auto", work=WORTH_COMPILING["cuda"], device="cuda:1")
    assert (kernels.compiled, kernels.transforms, kernels.graphs) == (True, False, True)


def test_kernels_are_compiled_for_many_kinds_of_layer_in_any_thread(monkeypatch):
    """On a GPU a backward pass has a thread of its own, where settings of the process do not count."""
    torch._dynamo.reset()  # what other tests of this process compiled counts as well
    counter = CompileCounter()  # compiles nothing, and counts
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    kernels = compiled_kernels("cpu")
    before, sizes = counter.frame_count, range(1, 13)  # more than PyTorch's own limit of eight

    def call():
        for size in sizes:
            parameter = torch.ones(1, size, 1, 1)
            kernels.norm(torch.ones(1, size, 2, 2), parameter, parameter, 1e-5, True, True)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert counter.frame_count - before >= len(sizes) - 1  # that of size 1 was there


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
def test_compiled_kernels_compute_the_same(monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 4)
    kernels = choose_kernels("always", work=0)
    assert kernels.compiled
    # One ConvNet block and a convolution for Winograd, of as few different shapes as there can be.
    block = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2)
    features = nn.Sequential(*block, nn.Conv2d(4, 4, 3, padding=1))
    network = ImageClassifier(features, nn.Linear(64, 3)).double()
    plain, fast = FusedStudentLoss(network, PLAIN), FusedStudentLoss(network, kernels)
    randn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat, direction = 0.1 * randn(2, plain.layout.count)
    images, labels = randn(2, 3, 8, 8), torch.tensor([0, 2])
    assert_near(fast.slope(flat, images, labels), plain.slope(flat, images, labels))
    expected = plain.along(flat, direction, images, labels)
    for part, truth in zip(fast.along(flat, direction, images, labels)[:3], expected[:3], strict=True):
        assert_near(part, truth)


@pytest.mark.parametrize(
    ("channels", "size", "width", "depth", "multiplications"),
    [
        (3, 8, 4, 2, 8 * 8 * 4 * 3 * 9 + 4 * 4 * 4 * 4 * 9 + 4 * 2 * 2 * 5),
        (1, 8, 6, 1, 8 * 8 * 6 * 1 * 9 + 6 * 4 * 4 * 5),
        # 14 px become 7, then 3.
        (3, 14, 4, 2, 14 * 14 * 4 * 3 * 9 + 7 * 7 * 4 * 4 * 9 + 4 * 3 * 3 * 5),
        # The field pads 28 px grey images to 32 px.
        (1, 28, 4, 2, 32 * 32 * 4 * 1 * 9 + 16 * 16 * 4 * 4 * 9 + 4 * 8 * 8 * 5),
    ],
)
def test_flops_equal_counts_by_hand(channels, size, width, depth, multiplications):
    config = NetworkConfig(width=width, depth=depth)
    network = build_network(config, channels=channels, size=size, classes=5, seed=0)
    assert flops(network, channels=channels, size=size) == 2 * multiplications
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
