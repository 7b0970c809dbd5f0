"""After the first step of its size, a step takes no new memory from the system."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from hotstart.engine.heap import keep_freed_memory
assert keep_freed_memory()
def step():
    parts = [torch.empty(1 << 20).fill_(1.0) for _ in range(8)]
    return torch.cat(parts[:4]).sum()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_freed_memory_is_found_mapped_again():
    """In a process of its own: what this one has freed before would hide the difference."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    # 110 000 with glibc's defaults; 0 in most processes, up to 5120 where the heap starts unluckily
    assert int(done.stdout) < 10_000
