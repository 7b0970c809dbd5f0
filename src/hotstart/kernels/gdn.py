"""The Gated DeltaNet mixer between its two projections: conv, l2norm, gates, gated delta rule, gated norm.

With S the state of one value head [V, K], zero at first, and all in float32:

    u = silu(causal_conv(q | k | v));  q, k = l2norm(q), l2norm(k);  q = q K^-0.5
    beta = sigmoid(b);  g = -exp(A_log) softplus(a + dt_bias)
    S = exp(g) S;  d = beta (v - S k);  S = S + d k^T;  o = S q
    y = norm_weight (o / rms(o)) silu(z)

Source: Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464.  The chunked form solves all tokens of a chunk at once:
with G the running sum of g in the chunk, M_ij = exp(G_i - G_j) for i >= j and A = strictly_lower(beta_i k_i.k_j M_ij),

    (I + A) U = beta (V - exp(G) K S^T)
    O = exp(G) Q S^T + (Q K^T * M) U;  S = exp(G_L) S + U^T (exp(G_L - G) K)

With T = (I + A)^-1, U = T (beta V) - T (beta exp(G) K) S^T: all but the products with S comes for many chunks at once.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hotstart.kernels.causal_conv import causal_conv, causal_conv_reference, causal_conv_step, ring_rows
from hotstart.kernels.gdn_batches import Batch, batch_of, groups
from hotstart.kernels.norm import row_length
from hotstart.kernels.ops import GdnDims, GdnWeights
from hotstart.kernels.slots import bring, store, stretches, take
from hotstart.kernels.step import DecodeInputs, PrefillInputs

__all__ = [
    "CPU_CHUNK_LENGTH",
    "gated_delta_rule_reference",
    "gdn_decode",
    "gdn_prefill",
    "gdn_reference",
]

CPU_CHUNK_LENGTH = 32
SLAB_BYTES = 1 << 20  # of conv outputs and of states that are worked on at once: they should stay in a core's cache
MOVED_BYTES = 1 << 17  # of states that are brought together and back in the time that one more piece of work costs
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

    packed: [T, packed_width]; conv_state: [W, C], oldest first; state: [HV, V, K] -> y [T, HV * V], both new states.
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


def _chunked_rule(u: Tensor, gates: Tensor, states: Tensor, counts: Sequence[int], dims: GdnDims) -> Tensor:
    """R chunks of N sequences; row after row, those of one index within their sequence are the first of the sequences.

    u: [R, L, C], q | k | v after the convolution; gates: [R, L, 2, HV], log(beta) and g; states: [N, HV, V, K], in
    place; counts: rows of each index -> [R * L, HV, V], o of unit length (see `_unit_length`).  All float32.
    """
    H, HV, K, V = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim
    R, L, group = u.shape[0], u.shape[1], HV // H
    qk = u[..., : 2 * H * K].view(R, L, 2, H, K).permute(0, 3, 2, 1, 4)
    qk = torch.div(qk, row_length(qk, L2_EPS), out=u.new_empty(R, H, 2, L, K)).view(R * H, 2 * L, K)
    q, k = qk[:, :L], qk[:, L:]
    beta, g = gates.permute(2, 0, 3, 1).contiguous().view(2, R * H, group, L, 1)
    beta = beta.exp_()
    total = g.cumsum(2)  # [R * H, r, L, 1]
    carry = total[:, :, -1:]
    grown, left = _exp(total), _exp(carry - total)
    decay = _exp(total - total.transpose(2, 3)).tril_()
    products = torch.bmm(qk, k.transpose(1, 2)).view(R * H, 1, 2, L, L)
    reads, system = u.new_empty(2, R * H, group, L, L)
    torch.mul(products[:, :, 0], decay, out=reads)
    torch.mul(products[:, :, 1], decay, out=system).mul_(beta)
    inverse = _unit_lower_inverse(system.view(R * HV, L, L))
    v = u[..., 2 * H * K :].view(R, L, H, group, V).permute(0, 2, 3, 1, 4)
    wanted = torch.mul(v, beta.view(R, H, group, L, 1), out=u.new_empty(R, H, group, L, V))
    deltas = torch.bmm(inverse, wanted.view(R * HV, L, V))
    b_q, b_k = q.unsqueeze(1), k.unsqueeze(1)
    lost = torch.bmm(inverse, (b_k * (grown * beta).neg_()).view(R * HV, L, K))
    asked, kept = (b_q * grown).view(R * HV, L, K), (b_k * left).view(R * HV, L, K)

    o = _scan(asked, deltas, lost, kept, _exp(carry).view(R * HV, 1, 1), states, counts)
    o.baddbmm_(reads.view(R * HV, L, L), deltas)
    rows = u.new_empty(R, L, HV, V)
    _unit_length(o.view(R, HV, L, V), dims, out=rows.transpose(1, 2))
    return rows.view(R * L, HV, V)


def _scan(
    asked: Tensor, deltas: Tensor, lost: Tensor, kept: Tensor, carry: Tensor, states: Tensor, counts: Sequence[int]
) -> Tensor:
    """Chunk after chunk: what the queries find in the state before it, [R * HV, L, V].

    deltas: [R * HV, L, V], completed in place; asked, lost, kept: [R * HV, L, K]; carry: [R * HV, 1, 1]; see
    `_chunked_rule`.
    """
    HV, V, K = states.shape[1:]
    found = deltas.new_empty(deltas.shape)
    rows = [n * HV for n in counts]
    n = 0
    for count, b_found, b_asked, b_deltas, b_lost, b_kept, b_carry in zip(
        counts, *(x.split(rows) for x in (found, asked, deltas, lost, kept, carry)), strict=True
    ):
        if count != n:
            n, s = count, states[:count].view(-1, V, K)
            columns = s.transpose(1, 2)
        torch.bmm(b_asked, columns, out=b_found)
        b_deltas.baddbmm_(b_lost, columns)
        s.mul_(b_carry).baddbmm_(b_deltas.transpose(1, 2), b_kept)
    return found


def _exp(x: Tensor) -> Tensor:
    """exp of sums of g, which are never positive but above a diagonal, where they would overflow and nobody reads them.

    What is below exp(-80) cannot be seen in a sum; and exp takes thirty times as long where its result is subnormal.
    """
    return x.clamp(-80.0, 0.0).exp_()


def _unit_lower_inverse(a: Tensor) -> Tensor:
    """(I + strictly_lower(a))^-1 of each [L, L]."""
    eye = torch.eye(a.shape[-1], device=a.device).expand_as(a)
    # From the right: for a row-major matrix that is what the library solves without copying it.
    inverse: Tensor = torch.linalg.solve_triangular(a, eye, upper=False, left=False, unitriangular=True)
    return inverse


def _columns(packed: Tensor, dims: GdnDims) -> tuple[Tensor, ...]:
    """x | z | gates of a packed projection, as views."""
    return packed.split_with_sizes(dims.columns, dim=1)[:3]


def _log_gates(gates: Tensor, weights: GdnWeights) -> Tensor:
    """log(beta) and g, [T, 2, HV] float32.  sigmoid(b) = exp(-softplus(-b)) makes one formula of both."""
    sign, bias, rate = weights.gates
    return F.softplus(torch.addcmul(bias, gates.float(), sign)).mul_(rate).view(gates.shape[0], 2, -1)


def _unit_length(o: Tensor, dims: GdnDims, out: Tensor | None = None) -> Tensor:
    """Divide o [..., V], made with queries that lack their K^-0.5, by its length.

    That takes the missing factor out, but for the norm's eps, which has to be K times as large.
    """
    return torch.div(o, row_length(o, dims.eps * dims.value_dim * dims.key_dim), out=out)


def _gate(o: Tensor, z: Tensor, weights: GdnWeights, out: Tensor) -> None:
    """The rest of the norm, and its gate.  o: [T, HV, V] float32, changed; z: [T, HV * V] -> out [T, HV * V]."""
    torch.mul(o.mul_(weights.norm_of_length).view(out.shape), F.silu(z.float()), out=out)


def gdn_decode(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    decode: DecodeInputs,
    dims: GdnDims,
    out: Tensor,
) -> None:
    """One token of each decoding sequence: rows [0, N) of packed and out; states in place by slot.

    packed: [T, packed_width]; conv: [slots, W, C]; state: [slots, HV, V, K]; out: [T, HV * V].
    """
    n = decode.num_sequences
    if not n:
        return
    H, HV, K, V = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim
    reads, writes = decode.reads[:n], decode.writes[:n]
    bring(conv, reads, writes)
    bring(state, reads, writes)
    if n < packed.shape[0]:
        packed, out = packed[:n], out[:n]
    x, z, gates = _columns(packed, dims)
    rows = ring_rows(writes, decode.contexts, dims.conv_width, conv.device)
    u = causal_conv_step(x, weights.taps, conv.view(-1, dims.conv_channels), rows)
    qk, v = u.split_with_sizes((2 * H * K, HV * V), dim=1)
    qk = qk.view(n, 2, H, K)
    q, k = torch.div(qk, row_length(qk, L2_EPS), out=u.new_empty(2, n, H, K).transpose(0, 1)).unbind(1)
    beta, decay = _log_gates(gates, weights).exp_().view(n, 2, HV, 1, 1).unbind(1)
    v = v.view(n, HV, V, 1)
    pieces = stretches(writes, max(1, SLAB_BYTES // (4 * HV * V * K)))
    if len(pieces) == 1 or 4 * n * HV * V * K < len(pieces) * MOVED_BYTES:
        states = take(state, writes)
        o = _rule_step(q, k, v, beta, decay, states)
        store(state, writes, states)
    else:
        parts = [(*(x[i:j] for x in (q, k, v, beta, decay)), state[writes[i] : writes[i] + j - i]) for i, j in pieces]
        o = torch.cat([_rule_step(*part) for part in parts])
    _gate(_unit_length(o, dims), z, weights, out)


def _rule_step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """q, k: [N, H, K]; v: [N, HV, V, 1]; beta, decay: [N, HV, 1, 1]; state: [N, HV, V, K], in place -> [N, HV, V].

    Rows times matrices, not matrices times columns, which the CPU's products do several times slower.
    """
    N, HV, V, K = state.shape
    q, k = q.view(-1, 1, K), k.view(-1, 1, K)
    wide = state.float()  # the state itself, if it is float32
    s = wide.mul_(decay).view(k.shape[0], -1, K)  # [N * H, r * V, K]
    columns = s.transpose(1, 2)
    delta = (v - torch.bmm(k, columns).view(N, HV, V, 1)).mul_(beta)
    s.addcmul_(delta.view(k.shape[0], -1, 1), k)
    if wide is not state:
        state.copy_(wide)
    return torch.bmm(q, columns).view(N, HV, V)


def gdn_prefill(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    prefill: PrefillInputs,
    dims: GdnDims,
    out: Tensor,
) -> None:
    """All tokens of the prefill spans: their rows of packed and out; states in place by slot.

    packed: [T, packed_width]; conv: [slots, W, C]; state: [slots, HV, V, K]; out: [T, HV * V].
    """
    n, L = prefill.num_sequences, prefill.chunk_length
    if not n:
        return
    lengths, writes, W = prefill.lengths[:n], prefill.writes[:n], dims.conv_width
    starts = tuple(end - length for end, length in zip(prefill.contexts, lengths, strict=True))
    rings = conv.view(-1, dims.conv_channels)
    bring(conv, prefill.reads[:n], writes)
    bring(state, prefill.reads[:n], writes)
    taps = weights.taps
    slab_chunks = max(1, SLAB_BYTES // (4 * L * dims.conv_channels))
    start = prefill.first_token
    for first, last in groups(lengths, L, slab_chunks):
        stop = start + sum(lengths[first:last])
        part = packed[start:stop], weights, taps
        if last - first == 1:
            order: tuple[int, ...] = (0,)
            one = state.narrow(0, writes[first], 1)
            past = rings.index_select(0, ring_rows(writes[first:last], starts[first:last], W, conv.device))
            past = _prefill_one(*part, past, one, L, slab_chunks * L, dims, out[start:stop])
        else:
            batch = batch_of(lengths[first:last], L, W, packed.device)
            order = batch.order
            slots = tuple(writes[first + i] for i in order)
            states = take(state, slots)
            past = rings.index_select(0, ring_rows(slots, tuple(starts[first + i] for i in order), W, conv.device))
            past = _prefill_batch(*part, past, states, L, batch, dims, out[start:stop])
            store(state, slots, states)
        slots, ends = (tuple(of[first + i] for i in order) for of in (writes, prefill.contexts))
        rings.index_copy_(0, ring_rows(slots, ends, W, conv.device), past)
        start = stop


def _prefill_one(
    packed: Tensor,
    weights: GdnWeights,
    taps: Tensor,
    past: Tensor,
    state: Tensor,
    L: int,
    slab: int,
    dims: GdnDims,
    out: Tensor,
) -> Tensor:
    """One span, slab after slab of its tokens.  past: [W, C], its inputs before; state: [1, HV, V, K], in place.

    Returns the inputs before what follows it.
    """
    wide = state.float()
    for start in range(0, packed.shape[0], slab):
        rows = packed[start : start + slab]
        x, z, gates = _columns(rows, dims)
        window = torch.cat([past, x])
        past = window[rows.shape[0] :]
        u, gates = causal_conv(window[1:], taps), _log_gates(gates, weights)
        chunks = -(-rows.shape[0] // L)
        tail = chunks * L - rows.shape[0]
        if tail:  # with k = v = g = 0 a token changes nothing
            u, gates = F.pad(u, (0, 0, 0, tail)), F.pad(gates, (0, 0, 0, 0, 0, tail))
        o = _chunked_rule(u.view(chunks, L, -1), gates.view(chunks, L, 2, -1), wide, (1,) * chunks, dims)
        _gate(o[: rows.shape[0]], z, weights, out[start : start + slab])
    if wide is not state:
        state.copy_(wide)
    return past


def _prefill_batch(
    packed: Tensor,
    weights: GdnWeights,
    taps: Tensor,
    past: Tensor,
    state: Tensor,
    L: int,
    batch: Batch,
    dims: GdnDims,
    out: Tensor,
) -> Tensor:
    """Several spans in one slab.  past: [N * W, C]; state: [N, HV, V, K], in place; both in the batch's order."""
    x, z, gates = _columns(packed, dims)
    rows = torch.cat([past, x])
    u = causal_conv(rows.index_select(0, batch.windows).view(-1, taps.shape[0] - 1 + L, dims.conv_channels), taps)
    gates = F.pad(_log_gates(gates, weights), (0, 0, 0, 0, 0, 1))
    gates[-1, 0] = -math.inf  # padding: with g = beta = 0 a token changes nothing
    gates = gates.index_select(0, batch.tokens)
    wide = state.float()
    o = _chunked_rule(u, gates.view(u.shape[0], L, 2, -1), wide, batch.counts, dims)
    if wide is not state:
        state.copy_(wide)
    _gate(o.index_select(0, batch.places), z, weights, out)
    return rows.index_select(0, batch.tails)
