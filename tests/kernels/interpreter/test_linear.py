"""Products of few tokens, joined to what stands around them, against their torch forms in float64.

In bfloat16, whose values are words' halves here; the interpreter cuts its last bits off where a GPU rounds.
"""

import pytest
import torch
from tolerances import relative_error

from hotstart.kernels import linear
from hotstart.kernels.linear_skinny import MOST_ROWS, stream

EPS = 1e-6
SHAPES = [(48, 136), (13, 520), (1, 8), (9, 1600)]  # columns, K: next to tiles, far below one, several pieces


def normal(*shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def poisoned(*shape):
    return torch.full(shape, torch.nan, dtype=torch.bfloat16)


@pytest.fixture(params=range(MOST_ROWS + 1), ids=lambda rows: f"{rows} rows")
def rows(request):
    return request.param


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_each_form_is_its_torch_form(N, K, rows):
    x, norm, residual = normal(rows, K, scale=30), normal(K, seed=1), normal(rows, N, seed=2)
    weight, gate_up = normal(N, K, seed=3, scale=K**-0.5), normal(2 * N, K, seed=4, scale=K**-0.5)
    wide = [tensor.double() for tensor in (x, norm, weight, gate_up, residual)]
    y = stream("store", x, weight, poisoned(rows, N), norm, EPS)
    assert relative_error(y, linear.norm_linear_torch(wide[0], wide[1], EPS, wide[2])) < 1e-2
    y = stream("store", x, weight, poisoned(rows, N))
    assert relative_error(y, linear.linear_torch(wide[0], wide[2])) < 1e-2
    y = stream("swiglu", x, gate_up, poisoned(rows, N), norm, EPS)
    assert relative_error(y, linear.norm_swiglu_torch(wide[0], wide[1], EPS, wide[3])) < 1e-2
    assert stream("add", x, weight, residual) is residual
    assert relative_error(residual, linear.add_linear_torch(wide[4], wide[0], wide[2])) < 1e-2


def test_a_row_is_not_changed_by_its_neighbours():
    x, norm, weight = normal(MOST_ROWS, 520), normal(520, seed=1), normal(40, 520, seed=2)
    alone = stream("swiglu", x[:1], weight, poisoned(1, 20), norm, EPS)
    for neighbour in (x[1:], torch.full_like(x[1:], torch.nan)):
        together = stream("swiglu", torch.cat([x[:1], neighbour]), weight, poisoned(MOST_ROWS, 20), norm, EPS)
        assert torch.equal(together[:1], alone)
