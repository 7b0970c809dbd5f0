"""Gated attention over pages: q/k norm, partial rotary and the write of keys and values; then causal attention.

Heads are grouped (GQA): query head j reads key head j // (H / Hkv).  Softmax is float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hotstart.kernels.norm import row_length, scalar
from hotstart.kernels.ops import AttentionDims, Step
from hotstart.kernels.rotary import apply_rotary

__all__ = ["attention_prepare", "attention_reference", "paged_attention"]

QUERY_SLAB = 256  # rows of a prompt whose mask is built at once


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sequence: its last queries.  q: [Tq, H, D]; k, v: [T, Hkv, D] -> [Tq, H, D]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    mask = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=q.device).tril(k.shape[0] - q.shape[0])
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)


def attention_prepare(
    packed: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Step,
    dims: AttentionDims,
) -> tuple[Tensor, Tensor]:
    """Queries [T, H, D] and gates [T, H * D] of a packed projection (q, gate) by head | k | v; fills the pages.

    packed: [T, *]; q_norm, k_norm: [D], zero-centred; rope: cos | sin [positions, rotary_dim] float32; keys, values:
    [pages, page_size, Hkv, D].  Rows of padding are zero.
    """
    T, n = packed.shape[0], step.num_tokens
    H, Hkv, D = dims.num_heads, dims.num_kv_heads, dims.head_dim
    heads = packed[:, : 2 * H * D].view(T, H, 2 * D)
    k, v = packed[:n, 2 * H * D : (2 * H + 2 * Hkv) * D].view(n, 2, Hkv, D).unbind(1)
    qk = torch.cat([heads[:n, :, :D], k], dim=1).float()  # [n, H + Hkv, D]
    qk = qk / row_length(qk, dims.eps * D)
    for part, weight in ((qk[:, :H], q_norm), (qk[:, H:], k_norm)):
        part.mul_(torch.add(scalar(D**0.5), weight.float(), alpha=D**0.5))
    apply_rotary(qk, rope.index_select(0, step.positions[:n]))
    qk = qk.to(packed.dtype)
    keys.view(-1, Hkv, D).index_copy_(0, step.kv_index[:n], qk[:, H:].to(keys.dtype))
    values.view(-1, Hkv, D).index_copy_(0, step.kv_index[:n], v.to(values.dtype))
    return _padded(qk[:, :H], T), heads[:, :, D:].reshape(T, H * D)


def paged_attention(queries: Tensor, keys: Tensor, values: Tensor, step: Step, dims: AttentionDims) -> Tensor:
    """Causal attention of every sequence to its own pages.  queries: [T, H, D] -> [T, H * D], rows of padding zero."""
    T = queries.shape[0]
    decode = step.decode
    spans = [(i, 1, decode.contexts[i], decode.page_table[i]) for i in range(decode.num_sequences)]
    parts = []
    for first, length, context, pages in spans + _prefill_spans(step):
        k, v = _gather(keys, pages, context), _gather(values, pages, context)
        parts.append(_attend(queries[first : first + length], k, v).reshape(length, -1))
    return _padded(parts[0] if len(parts) == 1 else torch.cat(parts), T)


def _padded(x: Tensor, num_rows: int) -> Tensor:
    """Rows of zeros after those of x."""
    missing = num_rows - x.shape[0]
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def _prefill_spans(step: Step) -> list[tuple[int, int, int, Tensor]]:
    spans, first = [], step.prefill.first_token
    for i in range(step.prefill.num_sequences):
        length = step.prefill.lengths[i]
        if length:
            spans.append((first, length, step.prefill.contexts[i], step.prefill.page_table[i]))
        first += length
    return spans


def _gather(cache: Tensor, pages: Tensor, context: int) -> Tensor:
    """The first `context` keys or values of a sequence, [context, Hkv, D]."""
    used = -(-context // cache.shape[1])
    return cache.index_select(0, pages[:used]).flatten(0, 1)[:context]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: the sequence's last queries [Tq, H, D]; k, v: [T, Hkv, D] -> [Tq, H, D]."""
    length, context = q.shape[0], k.shape[0]
    rows = []
    for start in range(0, length, QUERY_SLAB):
        stop = min(start + QUERY_SLAB, length)
        seen = context - length + stop
        mask = torch.ones(stop - start, seen, dtype=torch.bool, device=q.device).tril_(seen - (stop - start))
        part = F.scaled_dot_product_attention(
            q[None, start:stop].transpose(1, 2),
            k[None, :seen].transpose(1, 2).to(q.dtype),
            v[None, :seen].transpose(1, 2).to(q.dtype),
            attn_mask=mask if stop - start > 1 else None,
            enable_gqa=True,
        )
        rows.append(part[0].transpose(0, 1))
    return rows[0] if len(rows) == 1 else torch.cat(rows)
