"""Kernels run by Triton's interpreter, in float32.  It cannot share a process with the stub driver:

TRITON_INTERPRET=1 pytest tests/kernels/interpreter
"""

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # numpy says so where a GPU computes sigmoid(-100) = 1 / (1 + inf) = 0 without a word.
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered in exp:RuntimeWarning")


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not yet written holds NaN, so that reading it shows."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
