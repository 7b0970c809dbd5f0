"""Triton's interpreter and the stub driver cannot share a process: the variable is read when Triton is imported."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = ["dry", "gpu", "test_interpreter.py"] if INTERPRETED else ["interpreter"]
