"""Kernels run by Triton's interpreter, in float32.  It cannot share a process with the stub driver:

TRITON_INTERPRET=1 pytest tests/kernels/interpreter
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder


def pytest_configure(config: pytest.Config) -> None:
    # numpy says so where a GPU computes sigmoid(-100) = 1 / (1 + inf) = 0 without a word.
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered in exp:RuntimeWarning")
    # Triton 3.6's interpreter does so with the numbers of loops.  From 2.4 on numpy refuses: there, 3.6 needs an older.
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning")


@pytest.fixture(autouse=True)
def _comparisons_are_booleans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter gives a comparison the type of what it compares, and then refuses it as a mask."""
    binary_op = InterpreterBuilder.binary_op

    def typed(self, lhs, rhs, op):
        result = binary_op(self, lhs, rhs, op)
        if result.data.dtype == np.bool_:
            result.dtype = tl.int1
        return result

    monkeypatch.setattr(InterpreterBuilder, "binary_op", typed)


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not yet written holds NaN, so that reading it shows."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.uint8:  # an op's own memory, of many types: all of these bytes are NaN
            return tensor.fill_(255)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
