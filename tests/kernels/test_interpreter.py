"""The tests of tests/kernels/interpreter, in a process of their own.  To run one of them:

TRITON_INTERPRET=1 pytest tests/kernels/interpreter -k NAME
"""

import os
import subprocess
import sys
from pathlib import Path


def test_kernels_in_the_interpreter():
    folder = Path(__file__).parent / "interpreter"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
