"""The Gated DeltaNet mixer between its two projections: conv, l2norm, gates, gated delta rule, gated norm.

With S the state of one value head [V, K], zero at first, and all in float32:

    u = silu(causal_conv(q | k | v));  q, k = l2norm(q), l2norm(k);  q = q K^-0.5
    beta = sigmoid(b);  g = -exp(A_log) softplus(a + dt_bias)
    S = exp(g) S;  d = beta (v - S k);  S = S + d k^T;  o = S q
    y = norm_weight (o / rms(o)) silu(z)

Source: Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464.  The chunked form solves all tokens of a chunk at once:
with G the running sum of g in the chunk, M_ij = exp(G_i - G_j) for i >= j and A = strictly_lower(beta_i k_i.k_j M_ij),

    (I + A) U = beta V;  (I + A) W = beta exp(G) K;  D = U - W S^T
    O = (exp(G) Q) S^T + (Q K^T * M) D;  S = exp(G_L) S + D^T (exp(G_L - G) K)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hotstart.kernels.causal_conv import causal_conv, causal_conv_reference, causal_conv_step
from hotstart.kernels.ops import DecodeStep, GdnDims, GdnWeights, PrefillStep
from hotstart.kernels.slots import bring, store, take

__all__ = [
    "CPU_CHUNK_LENGTH",
    "gated_delta_rule",
    "gated_delta_rule_reference",
    "gdn_decode",
    "gdn_prefill",
    "gdn_reference",
]

CPU_CHUNK_LENGTH = 64
L2_EPS = 1e-6


def gated_delta_rule_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One sequence, token by token, in the dtype of its inputs.

    q, k: [T, H, K], normed and q scaled; v: [T, HV, V]; g, beta: [T, HV]; state: [HV, V, K] -> o [T, HV, V], new state.
    """
    group = v.shape[1] // k.shape[1]
    q, k = q.repeat_interleave(group, dim=1), k.repeat_interleave(group, dim=1)
    outputs = []
    for t in range(v.shape[0]):
        state = state * g[t].exp()[:, None, None]
        delta = beta[t][:, None] * (v[t] - torch.einsum("hvk,hk->hv", state, k[t]))
        state = state + delta[:, :, None] * k[t][:, None, :]
        outputs.append(torch.einsum("hvk,hk->hv", state, q[t]))
    return torch.stack(outputs) if outputs else torch.zeros_like(v), state


def gdn_reference(
    packed: Tensor, weights: GdnWeights, conv_state: Tensor, state: Tensor, dims: GdnDims
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole mixer for one sequence, token by token, in float64.

    packed: [T, packed_width]; conv_state: [W - 1, C]; state: [HV, V, K] -> y [T, HV * V], new conv state, new state.
    """
    H, HV, K, V, T = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim, packed.shape[0]
    packed = packed.double()
    u, conv_state = causal_conv_reference(packed[:, : dims.conv_channels], weights.conv.double(), conv_state.double())
    q, k, v = u.split([H * K, H * K, HV * V], dim=-1)
    q, k = (x.view(T, H, K) * (x.view(T, H, K).square().sum(-1, keepdim=True) + L2_EPS).rsqrt() for x in (q, k))
    z, b, a = (packed[:, i : i + n] for i, n in ((dims.z_offset, HV * V), (dims.b_offset, HV), (dims.a_offset, HV)))
    g = -weights.A_log.double().exp() * F.softplus(a + weights.dt_bias.double())
    o, state = gated_delta_rule_reference(q * K**-0.5, k, v.view(T, HV, V), g, b.sigmoid(), state.double())
    y = F.rms_norm(o, (V,), weights.norm.double(), dims.eps) * F.silu(z).view(T, HV, V)
    return y.view(T, HV * V), conv_state, state


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """One sequence of whole chunks; `state` [HV, V, K] float32 is advanced in place.

    q, k: [NC, H, L, K], normed and q scaled; v: [NC, HV, L, V]; g, beta: [NC, HV, L] -> o [NC, HV, L, V].
    """
    NC, H, L, _ = k.shape
    HV, V = v.shape[1], v.shape[3]
    group = HV // H
    total = g.cumsum(-1)  # [NC, HV, L]
    lower = torch.ones(L, L, dtype=torch.bool, device=k.device).tril_()
    # Masked before exp: above the diagonal the exponents are positive and overflow.
    decay = (total[..., :, None] - total[..., None, :]).masked_fill_(~lower, float("-inf")).exp_()
    k_keys = (k @ k.transpose(-1, -2)).repeat_interleave(group, 1)
    q_keys = (q @ k.transpose(-1, -2)).repeat_interleave(group, 1).mul_(decay)
    system = (k_keys * decay).mul_(beta[..., None])  # its diagonal and above are not read by the solve
    k, q = k.repeat_interleave(group, 1), q.repeat_interleave(group, 1)
    grown = total.exp()[..., None]
    right = torch.cat([v * beta[..., None], k * (beta[..., None] * grown)], dim=-1)
    u, w = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split([V, k.shape[-1]], -1)
    q = q * grown
    k = k * (total[..., -1:] - total).exp_()[..., None]
    carry = grown[..., -1:, :]
    outputs = torch.empty_like(v)
    for c in range(NC):
        delta = u[c] - w[c] @ state.transpose(-1, -2)
        outputs[c] = q[c] @ state.transpose(-1, -2) + q_keys[c] @ delta
        state.mul_(carry[c]).add_(delta.transpose(-1, -2) @ k[c])
    return outputs


def _gates(packed: Tensor, weights: GdnWeights, dims: GdnDims) -> tuple[Tensor, Tensor]:
    """g and beta, each [T, HV] float32."""
    b, a = packed[:, dims.b_offset : dims.a_offset + dims.num_value_heads].float().chunk(2, dim=-1)
    return F.softplus(a + weights.dt_bias).mul_(weights.A_log.exp()).neg_(), b.sigmoid()


def _gated_norm(o: Tensor, packed: Tensor, weights: GdnWeights, dims: GdnDims, out: Tensor) -> None:
    """o: [T, HV, V] float32, in place -> out [T, HV * V]."""
    z = packed[:, dims.z_offset : dims.b_offset].float()
    y = F.rms_norm(o, (dims.value_dim,), weights.norm.float(), dims.eps).view_as(z)
    out.copy_(y.mul_(F.silu(z)))


def _l2norm(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + L2_EPS).rsqrt_()


def gdn_decode(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    decode: DecodeStep,
    dims: GdnDims,
    out: Tensor,
) -> None:
    """One token of each decoding sequence: rows [0, N) of packed and out; states in place by slot.

    packed: [T, packed_width]; conv: [slots, W - 1, C]; state: [slots, HV, V, K]; out: [T, HV * V].
    """
    n = decode.num_sequences
    if not n:
        return
    H, HV, K, V = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim
    packed, out = packed[:n], out[:n]
    reads, writes, index = decode.reads[:n], decode.writes[:n], decode.write_slots[:n]
    for pool in (conv, state):
        bring(pool, reads, writes)
    window, rows = take(conv, writes, index), take(state, writes, index)
    u = causal_conv_step(packed[:, : dims.conv_channels], weights.conv, window)
    qk = _l2norm(u[:, : 2 * H * K].view(n, 2, H, K))
    q, k = (x.repeat_interleave(HV // H, dim=1)[..., None] for x in (qk[:, 0] * K**-0.5, qk[:, 1]))  # [N, HV, K, 1]
    g, beta = _gates(packed, weights, dims)
    s = (
        rows.float().mul_(g.exp_()[..., None, None])
        if rows.dtype != torch.float32
        else rows.mul_(g.exp_()[..., None, None])
    )
    delta = (u[:, 2 * H * K :].view(n, HV, V, 1) - s @ k) * beta[..., None, None]
    s.add_(delta * k.transpose(-1, -2))
    _gated_norm((s @ q).squeeze(-1), packed, weights, dims, out)
    if s is not rows:
        rows.copy_(s)
    store(conv, writes, index, window)
    store(state, writes, index, rows)


def gdn_prefill(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    prefill: PrefillStep,
    dims: GdnDims,
    out: Tensor,
) -> None:
    """All tokens of the prefill spans: their rows of packed and out; states in place by slot.

    packed: [T, packed_width]; conv: [slots, W - 1, C]; state: [slots, HV, V, K]; out: [T, HV * V].
    """
    n, L = prefill.num_sequences, prefill.chunk_length
    H, HV, K, V = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim
    for pool in (conv, state):
        bring(pool, prefill.reads[:n], prefill.writes[:n])
    first = prefill.first_token
    for length, slot in zip(prefill.lengths[:n], prefill.writes[:n], strict=True):
        if not length:
            continue
        rows = packed[first : first + length]
        u = causal_conv(rows[:, : dims.conv_channels], weights.conv, [conv[slot]], [length])
        g, beta = _gates(rows, weights, dims)
        chunks = -(-length // L)
        tail = chunks * L - length
        u, g, beta = (F.pad(x, (0, 0, 0, tail)) for x in (u, g, beta))
        qk = _l2norm(u[:, : 2 * H * K].view(chunks, L, 2, H, K)).permute(2, 0, 3, 1, 4)
        v = u[:, 2 * H * K :].view(chunks, L, HV, V).transpose(1, 2)
        g, beta = (x.view(chunks, L, HV).transpose(1, 2) for x in (g, beta))
        s = state[slot].float()
        o = gated_delta_rule(qk[0] * K**-0.5, qk[1], v, g, beta, s)
        state[slot].copy_(s)
        o = o.transpose(1, 2).reshape(chunks * L, HV, V)[:length]
        _gated_norm(o, rows, weights, dims, out[first : first + length])
        first += length
