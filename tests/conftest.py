"""Before torch is imported: one thread.  The models here are tiny, and runs side by side must not fight for cores."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Tests that do not ask for a GPU see none, wherever they run."""
    if config.getoption("markexpr") == "not gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
