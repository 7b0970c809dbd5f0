"""Before torch is imported: one thread.  The models here are tiny, and runs side by side must not fight for cores."""

import dataclasses
import os
from collections.abc import Callable

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Tests that do not ask for a GPU see none, wherever they run."""
    if config.getoption("markexpr") == "not gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def few_pages(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """few_pages(n): engines started from now on get n pages, so that sequences have to give way to each other."""
    from hotstart.engine import startup  # here, for it imports torch

    solve = startup.solve

    def limit(num_pages: int | None) -> None:
        def solve_small(*args: object) -> object:
            plan = solve(*args)
            return dataclasses.replace(plan, num_pages=num_pages or plan.num_pages)

        monkeypatch.setattr(startup, "solve", solve_small)

    return limit
