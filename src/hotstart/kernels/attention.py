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

QUERY_SLAB = 64  # rows of a prompt that attend at once
GATHER_BYTES = 1 << 22  # keys or values of several sequences that are gathered at once

Span = tuple[int, int, Tensor]  # tokens, tokens of its context, its row of the page table


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
    T, H, D = queries.shape
    parts, first = [], 0
    for spans in _gathers(_spans(step), keys):
        for (length, _, _), k, v in zip(spans, _gather(keys, spans), _gather(values, spans), strict=True):
            parts.append(_attend(queries.narrow(0, first, length), k, v))
            first += length
    return _padded(parts[0] if len(parts) == 1 else torch.cat(parts), T).view(T, H * D)


def _padded(x: Tensor, num_rows: int) -> Tensor:
    """Rows of zeros after those of x."""
    missing = num_rows - x.shape[0]
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def _spans(step: Step) -> list[Span]:
    decode, prefill = step.decode, step.prefill
    spans = [(1, decode.contexts[i], decode.page_table[i]) for i in range(decode.num_sequences)]
    for i in range(prefill.num_sequences):
        if prefill.lengths[i]:
            spans.append((prefill.lengths[i], prefill.contexts[i], prefill.page_table[i]))
    return spans


def _gathers(spans: list[Span], keys: Tensor) -> list[list[Span]]:
    """Neighbours whose keys are gathered at once."""
    limit = GATHER_BYTES // (keys[0, 0].numel() * keys.element_size())  # tokens
    groups: list[list[Span]] = [[]]
    tokens = 0
    for span in spans:
        tokens += span[1]
        if groups[-1] and tokens > limit:
            groups.append([])
            tokens = span[1]
        groups[-1].append(span)
    return groups


def _gather(cache: Tensor, spans: list[Span]) -> list[Tensor]:
    """For each span the keys or values of its context, [1, Hkv, context, D]."""
    page_size = cache.shape[1]
    pages = [table.narrow(0, 0, -(-context // page_size)) for _, context, table in spans]
    found = cache.index_select(0, pages[0] if len(pages) == 1 else torch.cat(pages))
    found = found.flatten(0, 1).transpose(0, 1).unsqueeze(0)
    first, parts = 0, []
    for (_, context, _), ids in zip(spans, pages, strict=True):
        parts.append(found.narrow(2, first, context))
        first += ids.shape[0] * page_size
    return parts


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: the sequence's last queries [Tq, H, D]; k, v: [1, Hkv, T, D] -> [Tq, H, D].

    Queries go in slabs, so that a slab computes little of what the causal mask hides.
    """
    length, context = q.shape[0], k.shape[2]
    if length == 1:
        return F.scaled_dot_product_attention(q.unsqueeze(2), k, v, enable_gqa=True).squeeze(2)
    q = q.transpose(0, 1).unsqueeze(0)
    rows = []
    for start in range(0, length, QUERY_SLAB):
        count = min(QUERY_SLAB, length - start)
        seen = context - length + start + count
        mask = torch.ones(count, seen, dtype=torch.bool, device=q.device).tril_(seen - count)
        part = F.scaled_dot_product_attention(
            q.narrow(2, start, count), k.narrow(2, 0, seen), v.narrow(2, 0, seen), attn_mask=mask, enable_gqa=True
        )
        rows.append(part[0].transpose(0, 1))
    return rows[0] if len(rows) == 1 else torch.cat(rows)
