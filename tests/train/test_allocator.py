"""settle_memory: freed tensors go back to the system, even from below others."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

HOLE = """
import sys
import torch
from train.loop import settle_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "settled":
    settle_memory()
megabytes = lambda n: torch.ones(n << 18)
before = resident()
megabytes(24)  # by itself glibc takes tensors of this size from its heap from now on
below, above = megabytes(20), [megabytes(1) for _ in range(40)]
del below
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc")
@pytest.mark.parametrize(("way", "low", "high"), [("settled", 35, 50), ("by itself", 55, 75)])
def test_a_freed_tensor_leaves_no_hole(way, low, high):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", HOLE, way], cwd=root, capture_output=True, text=True, check=True)
    assert low < int(done.stdout) < high
