"""The benchmark: complete records, each measured in a process of its own, and bad input named."""

from __future__ import annotations

import json

import pytest
import torch

from iadd_lab.study import bench
from iadd_lab.study.bench import (
    TASKS,
    VARIANTS,
    WAYS,
    BenchConfig,
    Task,
    measure,
    measure_engine,
    measure_training,
)
from tests.samples import assert_refused

TINY = BenchConfig(
    width=4, size=8, images=(2,), steps=(2,), iterations=1, engines=("adjoint",), training=False
)


def test_a_measurement_is_complete_and_json(monkeypatch):
    monkeypatch.setattr(bench, "matmul_gflops", lambda device: 1.0)
    measured = json.loads(json.dumps(measure(TINY, progress=False)))
    (record,) = measured["engines"]
    assert (record["engine"], record["images"], record["steps"]) == ("adjoint", 2, 2)
    assert record["title"] == VARIANTS["adjoint"].title
    assert record["seconds"] > 0
    assert record["peak_mb"] > 50  # Python and PyTorch alone are more
    assert record["conv_gflops"] > 0
    assert measured["training"] == []
    assert measured["config"]["width"] == 4


@pytest.mark.parametrize("engine", ["full", "frozen"])
def test_every_engine_gives_what_the_library_gives(engine):
    record = measure_engine(TINY, engine=engine, images=3, steps=1)
    assert record["seconds"] > 0
    # The convolutions of one image, forward: 3 to 4 channels on 8×8, 4 to 4 on 4×4; and the linear layer.
    forward = 2 * (27 * 4 * 64 + 36 * 4 * 16 + 16 * 10)
    assert record["conv_gflops"] * record["seconds"] * 1e9 == pytest.approx(9 * 3 * forward, rel=0.02)


@pytest.mark.parametrize("way", WAYS)
def test_training_is_measured_both_ways(monkeypatch, way):
    monkeypatch.setitem(TASKS, "tiny", Task(networks=2, images=6, batch=4, epochs=1))
    monkeypatch.setattr(bench, "compiled_kernels", lambda kind: None)
    assert measure_training(TINY, task="tiny", way=way)["seconds"] > 0


def test_a_failed_measurement_says_which(monkeypatch):
    monkeypatch.setitem(VARIANTS, "broken", VARIANTS["adjoint"])
    config = BenchConfig(width=4, size=8, images=(2,), steps=(1,), engines=("broken",), training=False)
    # The other process knows no such engine.
    with pytest.raises(RuntimeError, match=r"measuring .*'engine': 'broken'.* failed: .*broken"):
        measure(config, progress=False)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("engines", ("ful",), "ful"),
        ("engines", (), "engines is empty"),
        ("images", (0,), "images is 0"),
        ("steps", (2.5,), "steps is 2.5"),
        ("iterations", 0, "iterations is 0"),
        ("size", 7, "size is 7"),
    ],
)
def test_configs_name_the_bad_value(field, value, sentence):
    assert_refused(sentence, BenchConfig, **{field: value})


def test_the_rate_of_products_is_a_rate():
    torch.set_num_threads(1)
    assert 0 < bench.matmul_gflops(size=128, repeats=3) < 1e5


def test_a_full_unroll_too_large_for_the_machine_is_left_out():
    config = BenchConfig(images=(10, 10**6), steps=(50,), engines=("full", "adjoint"), training=False)
    kept = [(job["engine"], job["images"]) for _, job in bench._jobs(config)]
    assert kept == [("full", 10), ("adjoint", 10), ("adjoint", 10**6)]


def test_peak_memory_is_the_process_own():
    assert 50e6 < bench.peak_memory() < 50e9
