"""Freed memory is reused: the system is not asked for the same pages in every step."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from iadd_lab.memory import reuse_freed_memory

if sys.argv[1] == "reuse":
    assert reuse_freed_memory() and reuse_freed_memory()
torch.ones(2**24).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24).sum()  # 64 MB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_large_buffers_are_not_fetched_anew():
    faults = {
        mode: int(
            subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, check=True).stdout
        )
        for mode in ("plain", "reuse")
    }
    assert faults["reuse"] < 0.1 * faults["plain"]
