"""The benchmark: complete records, each measured in a process of its own, and bad input named."""

import json
from dataclasses import replace
from functools import partial

import pytest

from iadd_lab.study import bench
from iadd_lab.study.bench import TASKS, VARIANTS, WAYS, BenchConfig, Task, measure, measure_training
from tests.samples import assert_refused

TINY = BenchConfig(
    width=4, size=8, images=(2,), steps=(2,), iterations=1, engines=("adjoint",), training=False
)


def test_a_measurement_is_complete_and_json(monkeypatch):
    monkeypatch.setattr(bench, "matmul_gflops", partial(bench.matmul_gflops, size=128, repeats=3))
    measured = json.loads(json.dumps(measure(TINY, progress=False)))
    (record,) = measured["engines"]
    assert (record["engine"], record["images"], record["steps"]) == ("adjoint", 2, 2)
    assert record["title"] == VARIANTS["adjoint"].title
    assert min(record["seconds"], record["conv_gflops"], record["warm_up_seconds"]) > 0
    assert 50 < record["peak_mb"] < 50_000  # Python and PyTorch alone are more than the least
    assert 0 < measured["matmul_gflops"] < 1e5
    assert {*measured["machine"]} == {"processor", "threads", "torch", "device"}
    assert (measured["config"]["width"], record["iterations"], measured["training"]) == (4, 1, [])


@pytest.mark.parametrize(("engine", "passes"), [("full", 9), ("frozen", 9), ("adjoint", 11)])
def test_every_engine_gives_what_the_library_gives(engine, passes):
    record = bench.measure_engine(TINY, engine=engine, images=3, steps=1)
    # The convolutions of one image, forward: 3 to 4 channels on 8×8, 4 to 4 on 4×4; and the linear layer.
    forward = 2 * (27 * 4 * 64 + 36 * 4 * 16 + 16 * 10)
    assert record["conv_gflops"] * record["seconds"] * 1e9 == pytest.approx(passes * 3 * forward, rel=0.02)


@pytest.mark.parametrize("way", WAYS)
def test_training_is_measured_both_ways(monkeypatch, way):
    monkeypatch.setitem(TASKS, "tiny", Task(networks=2, images=6, batch=4, epochs=1))
    monkeypatch.setattr(bench, "compiled_kernels", lambda kind: None)
    assert measure_training(TINY, task="tiny", way=way)["seconds"] > 0


def test_a_failed_measurement_says_which(monkeypatch):
    monkeypatch.setitem(VARIANTS, "broken", VARIANTS["adjoint"])
    # The other process knows no such engine.
    with pytest.raises(RuntimeError, match=r"measuring .*'engine': 'broken'.* failed: .*broken"):
        measure(replace(TINY, engines=("broken",)), progress=False)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("engines", ("ful",), "ful"),
        ("engines", ("graphs",), "engine 'graphs' needs a CUDA device, and this is cpu"),
        ("engines", (), r"engines is \(\); it must be a list of at least one"),
        ("images", (0,), "images is 0"),
        ("steps", (2.5,), "steps is 2.5"),
        ("iterations", 0, "iterations is 0"),
        ("iterations", (1,), r"iterations is \(1,\)"),
        ("size", 7, "size is 7"),
    ],
)
def test_configs_name_the_bad_value(field, value, sentence):
    assert_refused(sentence, BenchConfig, **{field: value})


def test_a_full_unroll_too_large_for_the_machine_is_left_out():
    config = BenchConfig(images=(10, 10**6), steps=(50,), engines=("full", "adjoint"), training=False)
    kept = [(job["engine"], job["images"]) for _, job in bench._jobs(config)]
    assert kept == [("full", 10), ("adjoint", 10), ("adjoint", 10**6)]
