"""The kernels of the mixture of experts against expert by expert in float64."""

import pytest
import torch
from moe_cases import CASES, equals, make_case
from tolerances import assert_close

from hotstart.kernels import moe_gemm
from hotstart.kernels.activation import silu_mul, silu_mul_torch
from hotstart.kernels.moe import moe, route_torch
from hotstart.kernels.moe_route import route, sort_pairs
from hotstart.kernels.ops import MoeDims


@pytest.mark.parametrize("num_tokens", [1, 3, 37])
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_matches_expert_by_expert(num_tokens, dims):
    inputs, wanted = make_case(dims, num_tokens)
    out = moe(*inputs)
    assert_close(out[:num_tokens], wanted)
    assert not out[num_tokens:].any()


def test_an_expert_that_all_want_and_slabs_of_columns(monkeypatch):
    inputs, wanted = make_case(MoeDims(6, 2, 40, True), 40, hidden=72, favourite=3)
    whole = moe(*inputs)
    assert_close(whole[:40], wanted)
    monkeypatch.setattr(moe_gemm, "PARTS_BYTES", 1)
    assert torch.equal(moe(*inputs), whole)


@pytest.mark.parametrize(("num_tokens", "rows"), [(1, 16), (5, 2), (40, 4), (300, 16)])
def test_tiles_hold_every_pair_once_in_the_order_of_experts(num_tokens, rows):
    dims = MoeDims(7, 3, 16, True)
    (_, logits, _, _, _, step), _ = make_case(dims, num_tokens, hidden=8)
    weights, experts = route(logits, step.kv_index, dims)
    wanted_weights, wanted = route_torch(logits[:num_tokens], dims)
    assert torch.equal(experts[:num_tokens].long(), wanted)
    assert_close(weights[:num_tokens], wanted_weights.double())
    assert (experts[num_tokens:] == 7).all()
    pairs, tiles = sort_pairs(experts, dims, rows)
    order = experts.flatten().sort(stable=True).indices
    assert torch.equal(pairs.long(), order)
    found = sorted((first, min(first + rows, end), e) for e, first, end, _ in tiles.tolist() if e >= 0)
    ids = experts.flatten()[order].tolist()
    assert [p for first, end, _ in found for p in range(first, end)] == list(range(3 * num_tokens))
    assert all(ids[p] == e for first, end, e in found for p in range(first, end))


def test_of_equal_experts_the_first_is_chosen():
    logits, kv_index, wanted = equals(MoeDims(7, 3, 16, True), 50)
    weights, experts = route(logits, kv_index, MoeDims(7, 3, 16, True))
    assert torch.equal(experts.long(), wanted.indices[:, :3])
    assert_close(weights, wanted.values[:, :3].double().softmax(-1))


@pytest.mark.parametrize("shape", [(1, 8), (3, 136), (0, 16), (2, 2600)], ids=str)
def test_silu_mul(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 20
    assert_close(silu_mul(x), silu_mul_torch(x.double()))
