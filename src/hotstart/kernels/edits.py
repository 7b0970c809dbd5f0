"""What requests do to their logits before a token is chosen: penalties, biases, bans, and masks of allowed tokens.

Penalties look at the sequence's tokens so far: repetition r makes x / r of a positive logit and x * r of another, for
every token of prompt or answer (Keskar et al. 2019, arXiv:1909.05858); presence and frequency are subtracted, once and
for each time, for tokens of the answer.  The tokens stand in `history`, a row for each slot: a span's are written
there before its row is sampled, so those that no host has seen yet are counted too.

A token that stands there twice gets the same value twice, computed from the untouched logits; only what is added for
each time it stands there is added atomically, and all that is added to one logit is the same number.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.launch import Launcher, LaunchSpace, kernel

__all__ = [
    "BANNED",
    "Edits",
    "Masks",
    "Records",
    "edit",
    "edit_torch",
    "mask",
    "mask_torch",
    "mask_words",
    "record",
    "record_torch",
]

BANNED = -1e30  # finite: below every logit, and above what no mask allows
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Records:
    """Spans whose tokens are written into the history."""

    table: Tensor  # [N, 4] int32: slot, position of the first token, its row among the step's tokens, length
    host: tuple[tuple[int, int, int, int], ...]  # host: table


@dataclass(frozen=True, slots=True)
class Masks:
    """Rows in which only some tokens may come."""

    rows: Tensor  # [M] int32
    bits: Tensor  # [M, mask_words(V)] int32: bit t % 32 of word t // 32 says whether token t may
    host: tuple[int, ...]  # host: rows


@dataclass(frozen=True, slots=True)
class Edits:
    """What E of R rows want done to their logits."""

    table: Tensor  # [E, 8] int32: row, slot, tokens of the prompt, of all (0: none counts), first bias, first ban, end
    penalties: Tensor  # [E, 4] float32: repetition, presence, frequency
    ids: Tensor  # [B] int32: of biases, then of bans, one row of the table after the other
    values: Tensor  # [B] float32: what biases add
    allowed: Masks | None
    host: tuple[tuple[int, ...], ...]  # host: table


def mask_words(vocab_size: int) -> int:
    """Of a row of bits, whose rows are 16-byte aligned."""
    return -(-vocab_size // 128) * 4


def record_torch(history: Tensor, token_ids: Tensor, spans: Records) -> None:
    """history: [slots, positions] int32; token_ids: [T]."""
    for slot, start, first, length in spans.host:
        history[slot, start : start + length] = token_ids[first : first + length]


def mask_torch(x: Tensor, masks: Masks) -> None:
    """Make -inf in place of what may not come.  x: [R, V]."""
    shifts = torch.arange(32, dtype=torch.int32, device=x.device)
    for row, bits in zip(masks.host, masks.bits, strict=True):
        may = (bits[:, None] >> shifts & 1).view(-1)[: x.shape[1]]
        x[row].masked_fill_(may == 0, float("-inf"))


def edit_torch(logits: Tensor, edits: Edits, history: Tensor) -> Tensor:
    """A copy of logits [R, V], in float32, with the edits."""
    x = logits.to(torch.float32, copy=True)
    for penalties, (row, slot, prompt, length, bias, ban, end, _) in zip(edits.penalties, edits.host, strict=True):
        line = x[row]
        if length:
            repetition, presence, frequency, _ = penalties.unbind()
            seen = history[slot, :length].long()
            value = line[seen]
            line[seen] = torch.where(value > 0, value / repetition, value * repetition)
            answer = seen[prompt:]
            line[answer] = line[answer] - presence
            line.index_put_((answer,), -frequency.expand(len(answer)), accumulate=True)
        ids = edits.ids[bias:end].long()
        line[ids[: ban - bias]] += edits.values[bias:ban]
        bans = ids[ban - bias :]
        line[bans] = line[bans].clamp(max=BANNED)
    if edits.allowed is not None:
        mask_torch(x, edits.allowed)
    return x


@kernel
def _record_kernel(
    history_ptr,  # [slots, stride]
    token_ids_ptr,  # [T]
    table_ptr,  # [N, 4]
    stride: tl.int64,
    BLOCK: tl.constexpr,
):
    """Program: span."""
    p_span = table_ptr + tl.program_id(0).to(tl.int64) * 4
    p_to = history_ptr + tl.load(p_span).to(tl.int64) * stride + tl.load(p_span + 1)
    p_from = token_ids_ptr + tl.load(p_span + 2)
    length = tl.load(p_span + 3)
    for start in range(0, length, BLOCK):
        o_token = start + tl.arange(0, BLOCK)
        m_token = o_token < length
        tl.store(p_to + o_token, tl.load(p_from + o_token, mask=m_token), mask=m_token)


@kernel
def _mask_kernel(
    x_ptr,  # [R, V]
    rows_ptr,  # [M]
    bits_ptr,  # [M, W]
    V: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Programs: tile of tokens, masked row."""
    i_m = tl.program_id(1).to(tl.int64)
    p_x = x_ptr + tl.load(rows_ptr + i_m).to(tl.int64) * V
    o_token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_token = o_token < V
    b_word = tl.load(bits_ptr + i_m * W + o_token // 32, mask=m_token, other=-1)
    b_may = (b_word >> (o_token % 32)) & 1
    tl.store(p_x + o_token, tl.full([BLOCK], float("-inf"), x_ptr.dtype.element_ty), mask=m_token & (b_may == 0))


@kernel
def _edit_kernel(
    x_ptr,  # [R, V]: what is edited
    logits_ptr,  # [R, V]: the same, untouched
    table_ptr,  # [E, 8]
    penalties_ptr,  # [E, 4]
    ids_ptr,  # [B]
    values_ptr,  # [B]
    history_ptr,  # [slots, stride]
    stride: tl.int64,
    banned: tl.float32,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: edited row."""
    i_e = tl.program_id(0).to(tl.int64)
    p_row, p_penalty = table_ptr + i_e * 8, penalties_ptr + i_e * 4
    row = tl.load(p_row).to(tl.int64)
    p_x, p_logits = x_ptr + row * V, logits_ptr + row * V
    p_seen = history_ptr + tl.load(p_row + 1).to(tl.int64) * stride
    prompt, length = tl.load(p_row + 2), tl.load(p_row + 3)
    repetition, presence, frequency = tl.load(p_penalty), tl.load(p_penalty + 1), tl.load(p_penalty + 2)
    for start in range(0, length, BLOCK):
        o_seen = start + tl.arange(0, BLOCK)
        m_seen = o_seen < length
        b_id = tl.load(p_seen + o_seen, mask=m_seen, other=0)
        b_x = _repeated(tl.load(p_logits + b_id, mask=m_seen, other=0.0).to(tl.float32), repetition)
        tl.store(p_x + b_id, b_x, mask=m_seen)
    tl.debug_barrier()
    for start in range(prompt, length, BLOCK):
        o_seen = start + tl.arange(0, BLOCK)
        m_seen = o_seen < length
        b_id = tl.load(p_seen + o_seen, mask=m_seen, other=0)
        b_x = _repeated(tl.load(p_logits + b_id, mask=m_seen, other=0.0).to(tl.float32), repetition)
        tl.store(p_x + b_id, b_x - presence, mask=m_seen)
    tl.debug_barrier()
    for start in range(prompt, length, BLOCK):
        o_seen = start + tl.arange(0, BLOCK)
        m_seen = o_seen < length
        b_id = tl.load(p_seen + o_seen, mask=m_seen, other=0)
        tl.atomic_add(p_x + b_id, tl.zeros([BLOCK], tl.float32) - frequency, mask=m_seen)
    tl.debug_barrier()
    bias, ban, end = tl.load(p_row + 4), tl.load(p_row + 5), tl.load(p_row + 6)
    for start in range(bias, ban, BLOCK):
        o_bias = start + tl.arange(0, BLOCK)
        m_bias = o_bias < ban
        b_id = tl.load(ids_ptr + o_bias, mask=m_bias, other=0)
        tl.atomic_add(p_x + b_id, tl.load(values_ptr + o_bias, mask=m_bias, other=0.0), mask=m_bias)
    tl.debug_barrier()
    for start in range(ban, end, BLOCK):
        o_ban = start + tl.arange(0, BLOCK)
        m_ban = o_ban < end
        b_id = tl.load(ids_ptr + o_ban, mask=m_ban, other=0)
        tl.atomic_min(p_x + b_id, tl.zeros([BLOCK], tl.float32) + banned, mask=m_ban)


@triton.jit
def _repeated(b_x, repetition):
    return tl.where(b_x > 0, b_x / repetition, b_x * repetition)


def record(history: Tensor, token_ids: Tensor, spans: Records) -> None:
    """See record_torch."""
    _launch_record((len(spans.host),), history, token_ids, spans.table, history.shape[1], BLOCK=_BLOCK, num_warps=4)


def mask(x: Tensor, masks: Masks) -> None:
    """See mask_torch."""
    V, W = x.shape[1], masks.bits.shape[1]
    grid = (triton.cdiv(V, _BLOCK), len(masks.host))
    _launch_mask(grid, x, masks.rows, masks.bits, V=V, W=W, BLOCK=_BLOCK, num_warps=4)


def edit(logits: Tensor, edits: Edits, history: Tensor) -> Tensor:
    """See edit_torch."""
    x = logits.to(torch.float32, copy=True)
    _launch_edit(
        (len(edits.host),), x, logits, edits.table, edits.penalties, edits.ids, edits.values, history,
        history.shape[1], BANNED, V=x.shape[1], BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    if edits.allowed is not None:
        mask(x, edits.allowed)
    return x


def _warmup_record(space: LaunchSpace) -> None:
    def integers(*shape: int) -> Tensor:
        return space.empty(*shape, dtype=torch.int32)

    record(integers(space.num_slots, 4), integers(space.num_tokens), Records(integers(2, 4), ((0, 0, 0, 0),) * 2))


def _warmup_mask(space: LaunchSpace) -> None:
    if space.vocab_size:
        bits = space.empty(2, mask_words(space.vocab_size), dtype=torch.int32)
        masks = Masks(space.empty(2, dtype=torch.int32), bits, (0, 0))
        for dtype in dict.fromkeys((*space.activation_dtypes, torch.float32)):
            mask(space.tokens(space.vocab_size, dtype), masks)


def _warmup_edit(space: LaunchSpace) -> None:
    def floats(*shape: int) -> Tensor:
        return space.empty(*shape, dtype=torch.float32)

    def integers(*shape: int) -> Tensor:
        return space.empty(*shape, dtype=torch.int32)

    edits = Edits(integers(2, 8), floats(2, 4), integers(2), floats(2), None, ((0,) * 8,) * 2)
    if space.vocab_size:
        for dtype in space.activation_dtypes:
            edit(space.tokens(space.vocab_size, dtype), edits, integers(space.num_slots, 4))


_launch_record = Launcher(_record_kernel, warmup=_warmup_record)
_launch_mask = Launcher(_mask_kernel, warmup=_warmup_mask)
_launch_edit = Launcher(_edit_kernel, warmup=_warmup_edit)
