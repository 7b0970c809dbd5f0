"""Every op runs on meta tensors: none reads a value on the host or sizes a tensor by data."""

from dataclasses import fields

import torch
from steps import Row, make_step, moved
from test_gdn import make_dims, make_inputs

from hotstart.kernels.backends import ops_for
from hotstart.kernels.ops import AttentionDims, MoeDims, Ops


def test_ops_run_on_meta_tensors():
    ops = ops_for("torch")
    step = make_step(
        [Row(1, start=4, read=1, write=1, pages=(1, 2)), Row(1, read=-1, write=3, pages=(5,))],
        [Row(70, write=2, pages=tuple(range(6, 26))), Row(3, start=4, read=4, write=4, pages=(3, 4))],
        padding=2,
    )
    T = step.num_tokens + 2
    gdn = make_dims()
    packed, weights, conv, state = (moved(x, "meta") for x in make_inputs(gdn, T, 6))
    step = moved(step, "meta")
    out = torch.empty(T, gdn.num_value_heads * gdn.value_dim, device="meta")
    ops.gdn_decode(packed, weights, conv, state, step.decode, gdn, out)
    ops.gdn_prefill(packed, weights, conv, state, step.prefill, gdn, out)

    dims = AttentionDims(num_heads=6, num_kv_heads=2, head_dim=16, rotary_dim=4, eps=1e-6)
    norm, rope = torch.empty(16, device="meta"), torch.empty(99, 4, device="meta")
    keys, values = torch.empty(2, 30, 4, 2, 16, device="meta")
    packed = torch.empty(T, 16 * 16, device="meta")
    queries = ops.attention_prepare(packed, norm, norm, rope, keys, values, step, dims)
    assert ops.paged_attention(queries, packed, keys, values, step, dims).shape == (T, 96)

    x, weight, norm = (torch.empty(*s, device="meta") for s in ((T, 64), (48, 64), (64,)))
    assert ops.rms_norm(x, norm, 1e-6).shape == (T, 64)
    assert ops.linear(x, weight).shape == ops.norm_linear(x, norm, 1e-6, weight).shape == (T, 48)
    assert ops.norm_swiglu(x, norm, 1e-6, weight).shape == (T, 24)
    assert ops.add_linear(x, ops.linear(x, weight), weight.T.contiguous()) is x
    assert ops.silu_mul(x).shape == (T, 32)
    experts = torch.empty(4, 32, 64, device="meta"), torch.empty(4, 64, 16, device="meta")
    moe = MoeDims(num_experts=4, top_k=2, width=16, renormalise=True)
    assert ops.moe(x, x, torch.empty(T, 4, device="meta"), *experts, moe, step) is x


def test_no_op_of_the_triton_table_is_a_torch_form():
    torch_ops, triton_ops = ops_for("torch"), ops_for("triton")
    shared = [f.name for f in fields(Ops) if getattr(torch_ops, f.name) is getattr(triton_ops, f.name)]
    assert shared == []
