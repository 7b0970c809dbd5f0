"""The experts' kernels at published shapes, and silu_mul."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from moe_cases import CASES, equals, make_case, route
from steps import Row, make_step, moved
from tolerances import assert_close, relative_error

from hotstart.kernels.activation import silu_mul, silu_mul_torch
from hotstart.kernels.moe import moe, norm_router_torch, route_torch
from hotstart.kernels.moe_router import norm_router
from hotstart.kernels.moe_tiles import all_tiles
from hotstart.kernels.ops import MoeDims

LIMITS = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5}
LARGE = MoeDims(num_experts=64, top_k=8, width=512, renormalise=True, shares=True)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_matches_expert_by_expert(num_tokens, dims, dtype):
    inputs, wanted = make_case(dims, num_tokens, dtype, hidden=72)
    out = moe(*(moved(x, "cuda") for x in inputs)).cpu()
    assert relative_error(out[:num_tokens], wanted) < LIMITS[dtype]
    assert (out[num_tokens:] == 7).all()


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 17, 64, 65, 300])
def test_of_equal_experts_the_first_is_chosen_and_pairs_are_in_their_order(num_tokens, dtype):
    logits, kv_index, wanted = equals(LARGE, num_tokens, dtype)
    weights, pairs, tiles = (t.cpu() for t in route(logits.cuda(), kv_index.cuda(), LARGE, 16))
    shared = torch.full((num_tokens, 1), LARGE.num_experts)
    ids, order = torch.cat([wanted, shared], 1).flatten().sort(stable=True)
    assert torch.equal(pairs.long(), order)
    found = [(p, e) for e, first, end, _ in tiles[: tiles[-1, 0]].tolist() for p in range(first, min(first + 16, end))]
    assert found == list(enumerate(ids.tolist()))
    assert_close(weights[:, :8], logits.gather(1, wanted).double().softmax(-1))
    assert_close(weights[:, 8], logits[:, LARGE.num_experts].double().sigmoid())


@pytest.mark.parametrize("favourite", [None, 3])
@pytest.mark.parametrize("num_tokens", [1, 4, 5, 8, 60, 255, 700])
def test_large_shapes_match_the_torch_form_and_themselves(num_tokens, favourite):
    *inputs, dims, step = large(num_tokens, favourite)
    residual = torch.randn_like(inputs[0])
    out = moe(residual.clone(), *inputs, dims, step)
    wanted = residual[:num_tokens].double() + by_expert(*inputs, num_tokens)
    assert relative_error(out[:num_tokens], wanted) < LIMITS[torch.bfloat16]
    assert torch.equal(out[num_tokens:], residual[num_tokens:])
    for _ in range(10):
        assert torch.equal(moe(residual.clone(), *inputs, dims, step), out)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 64, 65])
def test_a_norm_and_its_logits(num_tokens, dtype):
    r = torch.Generator().manual_seed(0)
    shapes = {"residual": (num_tokens, 2048), "norm": (2048,), "router": (72, 2048)}
    inputs = [torch.randn(*shape, generator=r).mul_(0.1).to(dtype) for shape in shapes.values()]
    residual, norm, router = inputs
    wanted = norm_router_torch(residual.double(), norm.double(), 1e-6, router.double())
    found = norm_router(residual.cuda(), norm.cuda(), 1e-6, router.cuda())
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one.cpu(), other) < LIMITS[dtype]


def large(num_tokens, favourite=None):
    r = torch.Generator("cuda").manual_seed(0)
    E, D, width = LARGE.stacked_experts, 2048, LARGE.width

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=r, device="cuda") * scale).bfloat16()

    row = Row(num_tokens, pages=tuple(range(-(-num_tokens // 16))))
    step = moved(make_step([], [row], page_size=16, padding=3), "cuda")
    x, logits = normal(num_tokens + 3, D), normal(num_tokens + 3, LARGE.logit_width)
    if favourite is not None:
        logits[:, favourite] = 9
    x[num_tokens:] = logits[num_tokens:] = float("nan")
    return x, logits, normal(E, 2 * width, D, scale=D**-0.5), normal(E, D, width, scale=width**-0.5), LARGE, step


def by_expert(x, logits, gate_up, down, num_tokens):
    weights, experts = route_torch(logits[:num_tokens], LARGE)
    x, y = x[:num_tokens].double(), torch.zeros(num_tokens, x.shape[1], dtype=torch.float64, device="cuda")
    for e in range(LARGE.stacked_experts):
        token, choice = (experts == e).nonzero(as_tuple=True)
        gate, up = (x[token] @ gate_up[e].double().T).chunk(2, dim=-1)
        y.index_add_(0, token, weights[token, choice, None] * (F.silu(gate) * up @ down[e].double().T))
    return y


def test_few_and_many_rows_are_cut_to_the_same_bits(monkeypatch):
    """So the number of tokens in a step, once it has some, does not show in any of them."""
    *inputs, dims, step = large(400)
    outs = []
    for cut in all_tiles(torch.bfloat16):
        monkeypatch.setattr("hotstart.kernels.moe.tiles_for", lambda *_, cut=cut: cut)
        outs.append(moe(torch.zeros_like(inputs[0]), *inputs, dims, step))
    assert all(torch.equal(out, outs[0]) for out in outs)
    monkeypatch.undo()
    x, logits, *weights = inputs
    some = replace(step, num_tokens=5, kv_index=step.kv_index[7:12].clone())
    rows = torch.zeros_like(x[7:12]), x[7:12].clone(), logits[7:12].clone()
    assert torch.equal(moe(*rows, *weights, dims, some), outs[0][7:12])


@pytest.mark.parametrize("num_tokens", [1, 29])
def test_a_graph_replays_with_other_tokens_and_padding(num_tokens):
    x, logits, gate_up, down, dims, step = large(num_tokens)
    residual, zeros = torch.zeros_like(x), torch.zeros_like(x)
    wanted = moe(residual.clone(), x, logits, gate_up, down, dims, step)
    still_x, still_logits, kv_index = x.clone(), logits.clone(), step.kv_index.clone()
    x.zero_()
    logits.zero_()
    step.kv_index.fill_(-1)
    moe(residual, x, logits, gate_up, down, dims, step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        residual.copy_(zeros)
        moe(residual, x, logits, gate_up, down, dims, step)
    graph.replay()
    assert not residual.any()
    x.copy_(still_x)
    logits.copy_(still_logits)
    step.kv_index.copy_(kv_index)
    graph.replay()
    assert torch.equal(residual, wanted)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("shape", [(1, 2 * 512), (300, 2 * 9216), (5, 72)], ids=str)
def test_silu_mul(shape, dtype):
    x = (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 5).to(dtype).cuda()
    assert_close(silu_mul(x), silu_mul_torch(x.double()))
