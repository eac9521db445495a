"""The same bytes on every x86-64 processor with AVX2, where a run is held to it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from iadd_lab.device import INSTRUCTIONS, root

VERSION = torch.__version__.partition("+")[0]
# Made on an AMD EPYC (Zen 3, AVX2). RESULT_VERSION 1 gave the same there and on an Intel Xeon with AVX-512.
FOUND = {"2.14.1": "f7ee9c7a803d6583"}

RUN = """
import tempfile
from pathlib import Path

import iadd_lab as lab
from iadd_lab.store.artefacts import tensor_fingerprint

how = lab.Execution(instructions="avx2", threads=1, progress=False)
how.hold()
data = lab.load_data("digits", progress=False)
network = lab.NetworkConfig(width=16)
teachers = lab.TeacherConfig(network=network, epochs=2, batch=256, preprocess="zca")
with tempfile.TemporaryDirectory() as folder:
    trained = lab.train_teachers(data, teachers, Path(folder), count=2, how=how)
    config = lab.DistillConfig(ipc=1, iterations=3, student_steps=4, teacher_epochs=1, max_start_epoch=1)
    made = lab.distill(data, trained, config, how=how)
    config = lab.EvaluateConfig(network=network, networks=2, epochs=20)
    found = lab.evaluate(made.distilled, data, config, how=how)
tensors = {"images": made.distilled.images, "raw": made.raw, "losses": found.losses}
print(tensor_fingerprint(tensors | {"confusion": found.confusion}))
"""


def _printed(script: str, **more: str) -> subprocess.CompletedProcess:
    free = {name: value for name, value in os.environ.items() if name not in INSTRUCTIONS["avx2"]}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=free | more, capture_output=True, text=True, check=True)


@pytest.mark.skipif("torch.backends.cpu.get_cpu_capability() != 'AVX2'", reason="needs AVX2")  # asked late
@pytest.mark.skipif(VERSION not in FOUND, reason=f"known for PyTorch {', '.join(FOUND)}")
def test_a_held_run_gives_the_same_bytes_on_every_processor_and_with_any_number_of_cores():
    assert _printed(RUN, OMP_NUM_THREADS="3").stdout.strip() == FOUND[VERSION]


def test_whoever_holds_too_late_is_told_so():
    late = "import torch, iadd_lab; torch.ones(2) + 1; iadd_lab.Execution(instructions='avx2').hold()"
    said = "computes with default already: last digits will differ; start Python or the kernel anew."
    assert _printed(late, ATEN_CPU_CAPABILITY="default").stderr.strip().endswith(said)


def test_roots_are_made_of_operations_that_round_alike_everywhere():
    values = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    exact = 1 / (1 / np.sqrt(values.numpy()))  # IEEE 754 says how each of them rounds
    assert np.array_equal(root(values).numpy(), exact)
    assert root(torch.zeros(1)) == 0


if __name__ == "__main__":  # on another processor, or an emulated one
    exec(RUN)
