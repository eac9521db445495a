"""Freed memory is reused: the system is not asked for the same pages in every step."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from iadd_lab.training.fast.memory import reuse_freed_memory

if sys.argv[1] == "reuse":
    assert reuse_freed_memory() == reuse_freed_memory()
    if not reuse_freed_memory():
        sys.exit("this glibc refuses")
torch.ones(2**24).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24).sum()  # 64 MB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_large_buffers_are_not_fetched_anew():
    done = {
        mode: subprocess.run(
            [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=False
        )
        for mode in ("plain", "reuse")
    }
    if "this glibc refuses" in done["reuse"].stderr:
        pytest.skip("this glibc refuses")
    assert int(done["reuse"].stdout) < 0.1 * int(done["plain"].stdout)
