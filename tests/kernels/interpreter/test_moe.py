"""The kernels of the mixture of experts against expert by expert in float64."""

import pytest
import torch
from moe_cases import CASES, choose, equals, make_case, route
from tolerances import assert_close

from hotstart.kernels import moe as op
from hotstart.kernels import moe_gemm
from hotstart.kernels.activation import silu_mul, silu_mul_torch
from hotstart.kernels.moe import moe, norm_router_torch, route_torch
from hotstart.kernels.moe_router import norm_router
from hotstart.kernels.moe_tiles import Cut, Tiles
from hotstart.kernels.ops import MoeDims

SWAPPED = Tiles(1 << 62, 16, True, Cut(16, 16, 4, 2), Cut(16, 16, 4, 2))


@pytest.mark.parametrize("num_tokens", [1, 3, 90])
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_matches_expert_by_expert(num_tokens, dims):
    inputs, wanted = make_case(dims, num_tokens)
    out = moe(*inputs)
    assert_close(out[:num_tokens], wanted)
    assert (out[num_tokens:] == 7).all()
    assert_close(moe(*inputs)[:num_tokens], 2 * wanted)


@pytest.mark.parametrize("hidden", [64, 72])
def test_an_expert_that_all_want_slabs_of_columns_and_swapped_tiles(hidden, monkeypatch):
    (residual, *inputs), wanted = make_case(MoeDims(6, 2, 40, True, shares=True), 40, hidden=hidden, favourite=3)
    whole = moe(residual.clone(), *inputs)
    assert_close(whole[:40], wanted)
    op._series.cache_clear()
    monkeypatch.setattr(moe_gemm, "PARTS_BYTES", 1)
    assert torch.equal(moe(residual.clone(), *inputs), whole)
    op._series.cache_clear()
    monkeypatch.setattr("hotstart.kernels.moe.tiles_for", lambda *_: SWAPPED)
    assert_close(moe(residual.clone(), *inputs)[:40], wanted)


@pytest.mark.parametrize(("num_tokens", "rows"), [(1, 16), (5, 2), (40, 4), (300, 16)])
@pytest.mark.parametrize("shares", [False, True])
def test_tiles_hold_every_pair_once_in_the_order_of_experts(num_tokens, rows, shares):
    dims = MoeDims(7, 3, 16, True, shares)
    (_, _, logits, _, _, _, step), _ = make_case(dims, num_tokens, hidden=8)
    weights, pairs, tiles = route(logits, step.kv_index, dims, rows)
    wanted_weights, experts = route_torch(logits[:num_tokens], dims)
    experts, slots = experts.sort(-1)
    assert_close(weights[:num_tokens], wanted_weights.gather(1, slots).double())
    ids, order = experts.flatten().sort(stable=True)
    count = len(order)
    assert torch.equal(pairs[:count].long(), order)
    found = [(first, min(first + rows, end), e) for e, first, end, _ in tiles[: tiles[-1, 0]].tolist()]
    assert [p for first, end, _ in found for p in range(first, end)] == list(range(count))
    assert all(ids[p] == e for first, end, e in found for p in range(first, end))


@pytest.mark.parametrize("num_tokens", [50, 100])
def test_of_equal_experts_the_first_is_chosen(num_tokens):
    dims = MoeDims(7, 3, 16, True)
    logits, kv_index, wanted = equals(dims, num_tokens)
    weights, pairs, tiles = route(logits, kv_index, dims, 16)
    experts = torch.empty(3 * num_tokens, dtype=torch.long)
    for e, first, end, _ in tiles[: tiles[-1, 0]].tolist():
        experts[pairs[first : min(first + 16, end)].long()] = e
    assert torch.equal(experts.view(-1, 3), wanted)
    assert_close(weights, logits.gather(1, wanted).double().softmax(-1))


@pytest.mark.parametrize(
    ("num_tokens", "hidden", "width"), [(1, 72, 8), (2, 64, 24), (5, 40, 8), (17, 300, 24), (65, 40, 8)]
)
def test_a_norm_and_its_logits(num_tokens, hidden, width):
    r = torch.Generator().manual_seed(0)
    residual, norm, router = (
        torch.randn(*shape, generator=r) for shape in ((num_tokens, hidden), (hidden,), (width, hidden))
    )
    for found, wanted in zip(
        norm_router(residual, norm, 1e-6, router),
        norm_router_torch(residual.double(), norm.double(), 1e-6, router.double()),
        strict=True,
    ):
        assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_no_logits_choose_what_is_no_expert(value):
    dims = MoeDims(5, 3, 16, True, shares=True)
    logits = torch.full((2, dims.logit_width), value)
    chosen = choose(logits, torch.tensor([0, 1]), dims)
    assert chosen["experts"].tolist() == [0, 1, 2, 5] * 2


@pytest.mark.parametrize("shape", [(1, 8), (3, 136), (0, 16), (2, 2600)], ids=str)
def test_silu_mul(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 20
    assert_close(silu_mul(x), silu_mul_torch(x.double()))
