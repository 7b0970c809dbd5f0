"""Products of few tokens at published sizes, alone and in a row of launches that overlap, against float64."""

import pytest
import torch
from tolerances import relative_error

from hotstart.kernels import linear, linear_skinny
from hotstart.kernels.linear_skinny import add_linear, norm_linear, norm_swiglu

EPS = 1e-6
LIMIT = 6e-3  # several roundings to bfloat16
# Columns and K: in, out, gate or up, and down, of 0.8B, 4B and 27B; and next to tiles.
SIZES = [(8256, 1024), (1024, 2048), (2560, 4096), (9216, 2560), (2560, 9216), (5120, 17408), (132, 520)]
ROWS = [1, 2, 3, 4, 5]


def normal(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("N", "K"), SIZES)
def test_each_form_is_its_torch_form(N, K, rows):
    x, norm, residual = normal(rows, K, scale=3.0), normal(K), normal(rows, N)
    weight, gate_up = normal(N, K, scale=K**-0.5), normal(2 * N, K, scale=K**-0.5)
    wide = [tensor.double() for tensor in (x, norm, weight, gate_up, residual)]
    wanted = linear.norm_linear_torch(wide[0], wide[1], EPS, wide[2])
    assert relative_error(norm_linear(x, norm, EPS, weight), wanted) < LIMIT
    wanted = linear.norm_swiglu_torch(wide[0], wide[1], EPS, wide[3])
    assert relative_error(norm_swiglu(x, norm, EPS, gate_up), wanted) < LIMIT
    wanted = linear.linear_torch(wide[0], wide[2])
    assert relative_error(linear_skinny.linear(x, weight), wanted) < LIMIT
    assert relative_error(add_linear(residual, x, weight), wide[4] + wanted) < LIMIT


def block(x, norm, ups, downs):
    """What a model does to a residual: every product needs the one before."""
    for up, down in zip(ups, downs, strict=True):
        add_linear(x, norm_swiglu(x, norm, EPS, up), down)
    return x


@pytest.mark.parametrize("rows", [1, 2])
def test_launches_that_overlap_wait_for_each_other(rows):
    """Captured or not, however often, many launches in a row are as exact as one is."""
    D, width, depth = 1024, 3584, 24
    norm = normal(D, scale=0.1)
    ups, downs = ([normal(*s, scale=s[1] ** -0.5) for _ in range(depth)] for s in ((2 * width, D), (D, width)))
    start = normal(rows, D)
    found = block(start.clone(), norm, ups, downs)
    wanted = start.double()
    for up, down in zip(ups, downs, strict=True):
        hidden = linear.norm_swiglu_torch(wanted, norm.double(), EPS, up.double())
        wanted = wanted + hidden @ down.double().T
    assert torch.linalg.vector_norm(found.double() - wanted) < 0.02 * torch.linalg.vector_norm(wanted)
    x = start.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.copy_(start)
        block(x, norm, ups, downs)
    for _ in range(20):
        graph.replay()
        assert torch.equal(x, found)


def test_a_row_is_not_changed_by_its_neighbours():
    x, norm, weight = normal(2, 2560), normal(2560), normal(9216, 2560, scale=0.02)
    together = norm_linear(x, norm, EPS, weight)
    other = torch.cat([x[:1], torch.full_like(x[1:], torch.nan)])
    assert torch.equal(norm_linear(other, norm, EPS, weight)[:1], together[:1])
