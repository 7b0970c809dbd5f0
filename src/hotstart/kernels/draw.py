"""One token for each row of logits, in one launch: greedy, or drawn after temperature, min-p, top-k and top-p.

No sort.  What top-k and top-p keep is a value and all above it, and of the tokens with just that value the first few by
id.  The value is found two bits at a time: which is the largest v such that tokens of at least v are k, or weigh p?

A row is long, so this happens among few candidates where it can: those of at least the k-th best of all *lanes'* best
(lane j of a program sees the tokens j, j + BLOCK, ...) hold the k best, and few others.  For top-p alone the best
GUESS of the lanes are tried.  Where that is not enough, the whole row is searched: slower, by the same code.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.edits import edit, mask
from hotstart.kernels.launch import Launcher, LaunchSpace, kernel
from hotstart.kernels.sampling import SamplingRows

__all__ = ["sample"]

_BLOCK = 8192
_GUESS = 1024
_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}  # in which values of the dtype can differ


@triton.jit
def _load(p_x, start, n, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of logits, and their keys: integers in the same order, one for both zeros, 0 beyond n."""
    o_x = start + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o_x, mask=o_x < n, other=float("-inf")).to(tl.float32)
    b_bits = tl.where(b_x == 0, 0.0, b_x).to(tl.uint32, bitcast=True)
    b_key = tl.where(b_bits >= 0x80000000, b_bits ^ 0xFFFFFFFF, b_bits | 0x80000000) >> (32 - BITS)
    return b_x, tl.where(o_x < n, b_key, 0)


@triton.jit
def _threshold(p_x, stop, n, wanted, best, scale, BY_MASS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key such that tokens of at least that key are, or by mass weigh, as much as wanted; 0 for none.

    A token's weight is its probability, less a factor of the row.
    """
    key = tl.full([], 0, tl.uint32)
    digit = tl.full([], 1 << (BITS - 2), tl.uint32)
    for _ in range(BITS // 2):
        b_1 = tl.zeros([BLOCK], tl.float32)
        b_2 = tl.zeros([BLOCK], tl.float32)
        b_3 = tl.zeros([BLOCK], tl.float32)
        for start in range(0, stop, BLOCK):
            b_x, b_key = _load(p_x, start, n, BITS, BLOCK)
            b_weight = tl.full([BLOCK], 1, tl.float32)
            if BY_MASS:
                b_weight = tl.exp2((b_x - best) * scale)
            b_1 += tl.where(b_key >= key + digit, b_weight, 0)
            b_2 += tl.where(b_key >= key + 2 * digit, b_weight, 0)
            b_3 += tl.where(b_key >= key + 3 * digit, b_weight, 0)
        reached = (tl.sum(b_1, axis=0) >= wanted).to(tl.uint32)
        reached += (tl.sum(b_2, axis=0) >= wanted).to(tl.uint32)
        reached += (tl.sum(b_3, axis=0) >= wanted).to(tl.uint32)
        key += reached * digit
        digit = digit >> 2
    return key


@triton.jit
def _weigh(p_x, stop, n, key, best, scale, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Number and weight of the tokens above the key; number of those that have it, and the weight of each.

    Of n tokens, as far as the tile in which `stop` lies.
    """
    b_above = tl.zeros([BLOCK], tl.int32)
    b_weights = tl.zeros([BLOCK], tl.float32)
    b_ties = tl.zeros([BLOCK], tl.int32)
    b_tie = tl.zeros([BLOCK], tl.float32)
    for start in range(0, stop, BLOCK):
        b_x, b_key = _load(p_x, start, n, BITS, BLOCK)
        b_weight = tl.exp2((b_x - best) * scale)
        b_above += (b_key > key).to(tl.int32)
        b_weights += tl.where(b_key > key, b_weight, 0)
        b_ties += (b_key == key).to(tl.int32)
        b_tie = tl.maximum(b_tie, tl.where(b_key == key, b_weight, 0))
    return tl.sum(b_above, axis=0), tl.sum(b_weights, axis=0), tl.sum(b_ties, axis=0), tl.max(b_tie, axis=0)


@triton.jit
def _floor(p_x, stop, n, least, best, scale, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest key of a token that weighs at least so much, next to 1 of the likeliest."""
    b_floor = tl.full([BLOCK], 0xFFFFFFFF, tl.uint32)
    for start in range(0, stop, BLOCK):
        b_x, b_key = _load(p_x, start, n, BITS, BLOCK)
        b_floor = tl.where(tl.exp2((b_x - best) * scale) >= least, tl.minimum(b_floor, b_key), b_floor)
    return tl.min(b_floor, axis=0)


@triton.jit
def _gather(p_row, stop, key, p_values, p_ids, V: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Write the tokens of at least this key one after the other, as far as there is room; their number."""
    o_lane = tl.arange(0, BLOCK)
    count = tl.full([], 0, tl.int32)
    for start in range(0, stop, BLOCK):
        _, b_key = _load(p_row, start, V, BITS, BLOCK)
        m_hit = (b_key >= key) & (start + o_lane < V)
        hits = tl.sum(m_hit.to(tl.int32), axis=0)
        if hits > 0:
            o_place = count + tl.cumsum(m_hit.to(tl.int32), axis=0) - 1
            m_hit = m_hit & (o_place < BLOCK)
            tl.store(p_values + o_place, tl.load(p_row + start + o_lane, mask=m_hit), mask=m_hit)
            tl.store(p_ids + o_place, start + o_lane, mask=m_hit)
        count += hits
    o_tail = count + tl.arange(0, 16)
    tl.store(p_values + o_tail, tl.full([16], float("-inf"), p_values.dtype.element_ty), mask=o_tail < BLOCK)
    return count


@triton.jit
def _uniform(seed, position):
    """See sampling.uniform."""
    x = _mix(seed.to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15)
    x = _mix(x + (position + 1).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15)
    return (x >> 12).to(tl.int64).to(tl.float64) * 2.0**-52


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _candidates(
    p_row, p_values, p_ids, b_best, top_k, top_p, min_p, best, scale,
    V: tl.constexpr, GUESS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Whether few tokens hold all that is kept, and how many they are; without top-k, what the whole row weighs."""
    _, mass, _, _ = _weigh(p_row, tl.where(top_k < V, 0, V), V, 0, best, scale, BITS, BLOCK)
    wanted = tl.where(top_k < V, top_k, GUESS)
    searched = ((top_k < V) | (top_p < 1)) & (wanted <= BLOCK // 2)
    tl.store(p_values + tl.arange(0, BLOCK), b_best.to(p_values.dtype.element_ty))
    tl.debug_barrier()
    key = _threshold(p_values, tl.where(searched, BLOCK, 0), BLOCK, wanted, best, scale, False, BITS, BLOCK)
    tl.debug_barrier()
    count = _gather(p_row, tl.where(searched, V, 0), key, p_values, p_ids, V, BITS, BLOCK)
    tl.debug_barrier()
    _, found, _, _ = _weigh(p_values, tl.minimum(count, BLOCK), count, 0, best, scale, BITS, BLOCK)
    few = searched & (count <= BLOCK) & ((top_k < V) | ((found >= top_p * mass) & (min_p <= 0)))
    return few, count, mass


@triton.jit
def _cut(
    p_x, n, top_k, top_p, min_p, mass, best, scale, V: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """What top-k, then min-p, then top-p leave of n tokens of this mass: the least key, how many that have it, and the
    mass."""
    stop = tl.where(top_k < V, n, 0)
    key = _threshold(p_x, stop, n, top_k, best, scale, False, BITS, BLOCK)
    above, weights, ties, tie = _weigh(p_x, stop, n, key, best, scale, BITS, BLOCK)
    if top_k < V:
        ties = top_k - above
        mass = weights + ties * tie
    if min_p > 0:
        floor = _floor(p_x, n, n, min_p, best, scale, BITS, BLOCK)
        if floor > key:
            key = floor
            above, weights, ties, tie = _weigh(p_x, n, n, key, best, scale, BITS, BLOCK)
            mass = weights + ties * tie
    if top_p < 1:
        target = top_p * mass
        key_p = _threshold(p_x, n, n, target, best, scale, True, BITS, BLOCK)
        above, weights, ties_p, tie = _weigh(p_x, n, n, tl.maximum(key, key_p), best, scale, BITS, BLOCK)
        if key_p > key:
            ties = ties_p
        key = tl.maximum(key, key_p)
        # Of equal tokens one is kept while those before it weigh less than the target.
        before = tl.minimum((target - weights) / tl.maximum(tie, 1e-30), ties.to(tl.float32))
        ties = tl.minimum(ties, tl.maximum(tl.ceil(before), 1).to(tl.int32))
        mass = weights + ties * tie
    return key, ties, mass


@kernel
def _draw_kernel(
    logits_ptr,  # [R, V]
    temperature_ptr,  # [R]
    top_k_ptr,  # [R]
    top_p_ptr,  # [R]
    min_p_ptr,  # [R]
    seed_ptr,  # [R]
    position_ptr,  # [R]
    values_ptr,  # [R, BLOCK]: of the lanes, then of the candidates in the order of ids
    ids_ptr,  # [R, BLOCK]
    tokens_ptr,  # [R]
    V: tl.constexpr,
    GUESS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: row."""
    i_r = tl.program_id(0).to(tl.int64)
    p_row = logits_ptr + i_r * V
    o_lane = tl.arange(0, BLOCK)
    b_best = tl.full([BLOCK], float("-inf"), tl.float32)
    b_id = tl.zeros([BLOCK], tl.int32)
    for start in range(0, V, BLOCK):
        b_x = tl.load(p_row + start + o_lane, mask=start + o_lane < V, other=float("-inf")).to(tl.float32)
        b_id = tl.where(b_x > b_best, start + o_lane, b_id)
        b_best = tl.maximum(b_best, b_x)
    best = tl.max(b_best, axis=0)
    token = tl.min(tl.where(b_best == best, b_id, V - 1), axis=0)
    temperature = tl.load(temperature_ptr + i_r)
    if temperature > 0:
        scale = tl.minimum(1.4426950408889634 / temperature, 1e30)  # of exp2
        p_values, p_ids = values_ptr + i_r * BLOCK, ids_ptr + i_r * BLOCK
        top_k, top_p, min_p = tl.load(top_k_ptr + i_r), tl.load(top_p_ptr + i_r), tl.load(min_p_ptr + i_r)
        top_k = tl.where((top_k <= 0) | (top_k > V), V, top_k).to(tl.int32)
        few, count, mass = _candidates(
            p_row, p_values, p_ids, b_best, top_k, top_p, min_p, best, scale, V, GUESS, BITS, BLOCK
        )
        p_x, n = p_row, tl.full([], V, tl.int32)
        if few:
            p_x, n = p_values, tl.cdiv(count, 16) * 16
        if V % 16 == 0:
            n = tl.multiple_of(n, 16)
        key, ties, mass = _cut(p_x, n, top_k, top_p, min_p, mass, best, scale, V, BITS, BLOCK)
        u = _uniform(tl.load(seed_ptr + i_r), tl.load(position_ptr + i_r))
        place = _invert(p_x, n, key, ties, u * mass.to(tl.float64), best, scale, BITS, BLOCK)
        token = place
        if few:
            token = tl.load(p_ids + place)
    tl.store(tokens_ptr + i_r, token.to(tl.int64))


@triton.jit
def _invert(p_x, n, key, ties, target, best, scale, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The first place at which the kept tokens up to there weigh more than the target, else the last kept one."""
    o_lane = tl.arange(0, BLOCK)
    place, last, start = tl.full([], -1, tl.int32), tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    before = tl.full([], 0, tl.float64)
    while (start < n) & (place < 0):
        b_x, b_key = _load(p_x, start, n, BITS, BLOCK)
        b_weight = tl.exp2((b_x - best) * scale)
        m_tie = b_key == key
        b_rank = tl.cumsum(m_tie.to(tl.int32), axis=0)
        b_weight = tl.where((b_key > key) | (m_tie & (b_rank <= ties)), b_weight, 0)
        ties -= tl.sum(m_tie.to(tl.int32), axis=0)
        weight = tl.sum(b_weight, axis=0).to(tl.float64)
        last = tl.maximum(last, tl.max(tl.where(b_weight > 0, start + o_lane, 0), axis=0))
        if target < before + weight:
            left = (target - before).to(tl.float32)
            m_over = (tl.cumsum(b_weight, axis=0) > left) & (b_weight > 0)
            place = tl.minimum(tl.min(tl.where(m_over, start + o_lane, n), axis=0), last)
        before += weight
        start += BLOCK
    return tl.where(place < 0, last, place)


def sample(logits: Tensor, rows: SamplingRows, history: Tensor) -> Tensor:
    """One token id for each row, [R] int64.  logits: [R, vocab], masked in place; history: see edits.py."""
    if rows.grammar is not None:
        mask(logits, rows.grammar)
    if rows.edits is not None:
        logits = edit(logits, rows.edits, history)
    R, V = logits.shape
    tokens = torch.empty(R, dtype=torch.int64, device=logits.device)
    values = logits.new_empty(R, _BLOCK)
    ids = torch.empty(R, _BLOCK, dtype=torch.int32, device=logits.device)
    _launch(
        (R,), logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.position, values, ids,
        tokens, V=V, GUESS=_GUESS, BITS=_KEY_BITS[logits.dtype], BLOCK=_BLOCK, num_warps=16,
    )  # fmt: skip
    return tokens


def _warmup(space: LaunchSpace) -> None:
    def column(dtype: torch.dtype) -> Tensor:
        return space.empty(space.num_tokens, dtype=dtype)

    integers, floats = column(torch.int64), column(torch.float32)
    rows = SamplingRows(
        temperature=floats,
        top_k=integers,
        top_p=floats,
        min_p=floats,
        seed=integers,
        position=integers,
        all_greedy=True,
        candidates=0,
        any_min_p=False,
        grammar=None,
        edits=None,
    )
    # What was edited is float32.
    for dtype in dict.fromkeys((*space.activation_dtypes, torch.float32)):
        if space.vocab_size:
            sample(space.tokens(space.vocab_size, dtype), rows, space.empty(1, 4, dtype=torch.int32))


_launch = Launcher(_draw_kernel, warmup=_warmup)
