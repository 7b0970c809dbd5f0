"""Gated causal attention over pages: o = softmax(q k^T / sqrt(D)) v;  y = sigmoid(gate) * o.

Heads are grouped (GQA): query head j reads key head j // (H / Hkv).  Softmax is float32.  On a GPU one kernel attends
for the decoding sequences (attention_decode.py), another for the prompts (attention_prefill.py).
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hotstart.kernels.activation import sigmoid_mul_torch
from hotstart.kernels.attention_decode import attention_decode
from hotstart.kernels.attention_prefill import attention_prefill
from hotstart.kernels.ops import AttentionDims
from hotstart.kernels.step import DecodeInputs, Step

__all__ = ["attention_reference", "paged_attention", "paged_attention_torch"]

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


def paged_attention_torch(
    queries: Tensor, packed: Tensor, keys: Tensor, values: Tensor, step: Step, dims: AttentionDims
) -> Tensor:
    """See `paged_attention`."""
    T, H, D = queries.shape
    parts, first, n = [], 0, step.num_decodes
    # Together if padding at most doubles the work: a call for each sequence costs more than a short context.
    if n and n * step.decode.max_context <= 2 * sum(step.decode.contexts[:n]):
        parts.append(_attend_together(queries[:n], keys, values, step))
        first = n
    for some in _gathers(_spans(step, first), keys):
        for (length, _, _), k, v in zip(some, _gather(keys, some), _gather(values, some), strict=True):
            parts.append(_attend(queries.narrow(0, first, length), k, v))
            first += length
    attended = parts[0] if len(parts) == 1 else torch.cat(parts)
    gate = packed[:first, : 2 * H * D].view(first, H, 2 * D)[:, :, D:]
    gated = sigmoid_mul_torch(attended, gate).view(first, H * D)
    return gated if first == T else torch.cat([gated, gated.new_zeros(T - first, H * D)])


def paged_attention(
    queries: Tensor, packed: Tensor, keys: Tensor, values: Tensor, step: Step, dims: AttentionDims
) -> Tensor:
    """Causal attention of every sequence to its own pages, times sigmoid(gate) -> [T, H * D], rows of padding zero.

    queries: [T, H, D]; packed: [T, *], (query, gate) by head; keys, values: [pages, page_size, Hkv, D].
    """
    T, H, D = queries.shape
    out = queries.new_empty(T, H * D)
    if step.num_decodes or not step.prefill.num_sequences:
        attention_decode(queries, packed, keys, values, step, dims, out)
    if step.prefill.num_sequences:
        attention_prefill(queries, packed, keys, values, step, dims, out)
    return out


def _spans(step: Step, first: int) -> list[Span]:
    """All but the first few decoding sequences."""
    decode, prefill = step.decode, step.prefill
    spans = [(1, decode.contexts[i], decode.page_table[i]) for i in range(first, decode.num_sequences)]
    for i in range(prefill.num_sequences):
        if prefill.lengths[i]:
            spans.append((prefill.lengths[i], prefill.contexts[i], prefill.page_table[i]))
    return spans


def _gathers(spans: list[Span], keys: Tensor) -> list[list[Span]]:
    """Neighbours whose keys are gathered at once."""
    limit = GATHER_BYTES // (keys.shape[2] * keys.shape[3] * keys.element_size())  # tokens
    groups: list[list[Span]] = []
    tokens = 0
    for span in spans:
        tokens += span[1]
        if not groups or tokens > limit:
            groups.append([])
            tokens = span[1]
        groups[-1].append(span)
    return groups


def _attend_together(q: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
    """One query of each decoding sequence, contexts padded to the longest.  q: [N, H, D] -> [N, H, D]."""
    index, mask = _places(step.decode, step.kv_index, keys.shape[1], q.dtype)
    shape = q.shape[0], -1, *keys.shape[2:]
    k, v = (x.flatten(0, 1).index_select(0, index).view(shape).transpose(1, 2) for x in (keys, values))
    return F.scaled_dot_product_attention(q.unsqueeze(2), k, v, attn_mask=mask, enable_gqa=True).squeeze(2)


# The same for all layers of a step.
@lru_cache(maxsize=1)
def _places(decode: DecodeInputs, kv_index: Tensor, page_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Where the keys of each context lie, [N * longest], and what is added to scores, [N, 1, 1, longest]."""
    n, longest = decode.num_sequences, decode.max_context
    positions = torch.arange(-(-longest // page_size) * page_size, device=kv_index.device)
    pages = decode.page_table[:n, : len(positions) // page_size].unsqueeze(2)
    places = torch.add(positions[:page_size], pages, alpha=page_size).view(n, -1)[:, :longest]
    if n == 1:
        return places.flatten(), None
    beyond = positions[:longest] >= decode.context_lens[:n].unsqueeze(1)
    # Padding repeats the sequence's own last token: whatever else lies there may not be a number.
    places = torch.where(beyond, kv_index[:n].unsqueeze(1), places)
    return places.flatten(), torch.where(beyond, -math.inf, 0.0).to(dtype).view(n, 1, 1, -1)


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
    # A slab sees all before it and, of itself, what is not above the diagonal: a part of one mask serves every slab.
    slab = min(QUERY_SLAB, length)
    above = torch.full((slab, slab), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    mask = torch.cat([above.new_zeros(slab, context), above], dim=1)
    rows = []
    for start in range(0, length, slab):
        count = min(slab, length - start)
        seen = context - length + start + count
        part = F.scaled_dot_product_attention(
            q.narrow(2, start, count),
            k.narrow(2, 0, seen),
            v.narrow(2, 0, seen),
            attn_mask=mask[:count, context - seen + count : context + count],
            enable_gqa=True,
        )
        rows.append(part[0].transpose(0, 1))
    return rows[0] if len(rows) == 1 else torch.cat(rows)
