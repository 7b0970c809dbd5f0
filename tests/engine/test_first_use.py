"""Nothing is met for the first time after the seal: no module is imported, and oneDNN has every primitive it needs.

On a CPU oneDNN generates code for each new shape of a matrix product and keeps it: that is this device's late compile.
It tells of each under ONEDNN_VERBOSE.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_random_traffic_meets_nothing_that_start_up_has_not_met():
    environment = {
        **os.environ,
        "ONEDNN_VERBOSE": "profile_create",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    script = Path(__file__).with_name("sealed_script.py")
    done = subprocess.run(
        [sys.executable, str(script), str(ROOT / "checkpoints/tiny-qwen3.5")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    start_up, serving = done.stdout.split("sealed\n")
    assert start_up.count("create:cache_miss") > 10, "the counter does not move"
    late = [line for line in serving.splitlines() if "create:cache_miss" in line]
    assert not late and serving.count("create:cache_hit") > 100, late[:3]
    assert serving.splitlines()[-1].split() == ["new", "modules:"], serving.splitlines()[-1]
