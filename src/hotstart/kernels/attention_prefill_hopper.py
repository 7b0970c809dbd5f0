"""Causal attention of prompts on Hopper: what attention_prefill.py computes, by warps that have roles.

Two warps, for keys and for values, have the copy engine bring pages to shared memory, as far ahead as it has room; two
groups of four warps multiply, 64 rows of a block each.  A group waits for data and for nothing else, so one has its
products running while the other turns scores into weights; and within a group the values are a tile behind the keys,
for the same reason.

Source: Shah et al. 2024, arXiv:2407.08608.  In Gluon, whose names change from version to version of Triton.
"""

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from hotstart.kernels.launch import Launcher, LaunchSpace, kernel
from hotstart.kernels.ops import AttentionDims
from hotstart.kernels.target import current_target

__all__ = ["OPTIONS", "ROWS", "hopper_serves", "launch_on_hopper"]

TRITONS = ("3.6", "3.7")  # that know these names
PAGES = (16, 32, 64)  # tokens of a page
ROWS, KEYS = tl.constexpr(128), tl.constexpr(64)  # of a block, of a tile
_KEY_STAGES, _VALUE_STAGES = tl.constexpr(3), tl.constexpr(2)  # as many tiles as there is room for
_GROUP = tl.constexpr(64)  # rows of a group of warps
_WARPS = tl.constexpr(4)  # of a group
OPTIONS = {"num_warps": _WARPS.value}  # of a launch: the other groups and the copying warps are the kernel's own
_MULTIPLY_REGISTERS, _COPY_REGISTERS = tl.constexpr(240), tl.constexpr(24)  # of a thread
_TILES = tl.constexpr(gl.NVMMASharedLayout(128, 16, rank=2))  # columns of 64 apart, one after the other
_COLUMNS = tl.constexpr(64)
_BY_ROWS = tl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0]))  # a warp has a row of 256
_NOWHERE = tl.constexpr(1 << 30)  # a row of the cache that there is not: the copy engine brings zeros
LOG2E = tl.constexpr(1.4426950408889634)


@gluon.jit
def _copy(p_cache, stages, p_table, num_tiles, context, HKV: gl.constexpr, D: gl.constexpr, PAGE: gl.constexpr):
    """All tiles of a block: of keys, or of values."""
    if num_tiles > 0:
        rows = tma.make_tensor_descriptor(p_cache, [_NOWHERE, D], [HKV * D, 1], [PAGE, _COLUMNS], _TILES)
        for i in range(num_tiles):
            _ask(rows, stages, i, p_table, context, PAGE)


@gluon.jit
def _ask(cache_rows, stages, i, p_table, context, PAGE: gl.constexpr):
    """For tile i, when its stage is free; its pages are looked up before that."""
    smem, full, free = stages
    D: gl.constexpr = smem.shape[2]
    rows = ()
    for j in gl.static_range(KEYS // PAGE):
        page = i * (KEYS // PAGE) + j
        i_page = gl.load(p_table + page, mask=page * PAGE < context, other=_NOWHERE // PAGE)
        rows += (i_page * PAGE,)
    stage = i % smem.shape[0]
    mbarrier.wait(free.index(stage), i // smem.shape[0] & 1 ^ 1)
    mbarrier.expect(full.index(stage), KEYS * D * 2)
    for j in gl.static_range(KEYS // PAGE):
        for c in gl.static_range(D // _COLUMNS):
            box = _box(smem, stage, c, j, PAGE)
            tma.async_copy_global_to_shared(cache_rows, [rows[j], c * _COLUMNS], full.index(stage), box)


@gluon.jit
def _box(smem, stage, c, j, PAGE: gl.constexpr):
    """Page j of a stage, 64 columns from the c-th on: these lie together."""
    D: gl.constexpr = smem.shape[2]
    NUM: gl.constexpr = smem.shape[0] * (D // _COLUMNS) * (KEYS // PAGE)
    boxes = smem._reinterpret(smem.dtype, [NUM, PAGE, _COLUMNS], _TILES)
    return boxes.index((stage * (D // _COLUMNS) + c) * (KEYS // PAGE) + j)


@gluon.jit
def _clear(stages, i, context, PAGE: gl.constexpr):
    """What lies behind the context on its last page, in tile i, may be no numbers; weights of zero ask for some."""
    smem, _, _ = stages
    L: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [_WARPS, 1], [1, 0])
    if (context % PAGE != 0) & (context < (i + 1) * KEYS):
        m = (gl.arange(0, PAGE, gl.SliceLayout(1, L)) < context % PAGE)[:, None]
        for c in gl.static_range(smem.shape[2] // _COLUMNS):
            box = _box(smem, i % smem.shape[0], c, context % KEYS // PAGE, PAGE)
            b_v = box.load(L)
            box.store(gl.where(m, b_v, gl.zeros_like(b_v)))
        fence_async_shared()


@gluon.jit
def _await(stages, i):
    """Tile i, [KEYS, D]."""
    smem, full, _ = stages
    mbarrier.wait(full.index(i % smem.shape[0]), i // smem.shape[0] & 1)
    return smem.index(i % smem.shape[0])


@gluon.jit
def _give_back(stages, i):
    smem, _, free = stages
    mbarrier.arrive(free.index(i % smem.shape[0]), count=1)


@gluon.jit
def _scores(q_smem, k_smem, SCORES: gl.constexpr):
    """q k^T, asked for."""
    zero = gl.zeros([_GROUP, KEYS], gl.float32, SCORES)
    return warpgroup_mma(q_smem, k_smem.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def _weigh(b_s, b_max, b_sum, scale):
    """Weights of a tile's scores, and by how much those of the tiles before it shrink."""
    b_new_max = gl.maximum(b_max, gl.max(b_s, axis=1) * scale)
    b_p = gl.exp2(b_s * scale - b_new_max[:, None])
    b_shrink = gl.exp2(b_max - b_new_max)
    return b_p, b_shrink, b_new_max, b_sum * b_shrink + gl.sum(b_p, axis=1)


@gluon.jit
def _attend(
    b_o,
    b_max,
    b_sum,
    b_p,
    q_smem,
    keys,
    values,
    o_m,
    begin,
    end,
    scale,
    MASKED: gl.constexpr,
    SCORES: gl.constexpr,
    OUT: gl.constexpr,
):
    """Go on with tiles [begin, end) of keys, and with values a tile behind.

    b_p: weights of the tile before `begin`; those of the last tile are returned.
    """
    for i in range(begin, end):
        b_s = _scores(q_smem, _await(keys, i), SCORES)
        b_o = warpgroup_mma(b_p, _await(values, i - 1), b_o, is_async=True)
        b_s = warpgroup_mma_wait(1, deps=[b_s])
        _give_back(keys, i)
        if MASKED:
            o_t = i * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
            b_s = gl.where(o_t[None, :] <= o_m[:, None], b_s, float("-inf"))
        b_w, b_shrink, b_max, b_sum = _weigh(b_s, b_max, b_sum, scale)
        b_w = gl.convert_layout(b_w.to(b_p.dtype), gl.DotOperandLayout(0, OUT, 2))
        # The weights are named so that they are made before the wait.
        b_o, b_p = warpgroup_mma_wait(0, deps=[b_o, b_w])
        _give_back(values, i - 1)
        b_o = b_o * gl.convert_layout(b_shrink, gl.SliceLayout(1, OUT))[:, None]
    return b_o, b_max, b_sum, b_p


@gluon.jit
def _multiply(
    i_group,
    p_queries,
    p_gates,
    p_y,
    num_rows,
    past,
    context,
    first,
    num_tiles,
    scale,
    q_smem,
    keys,
    values,
    H: gl.constexpr,
    HKV: gl.constexpr,
    D: gl.constexpr,
    ROW: gl.constexpr,
    PAGE: gl.constexpr,
):
    """A group's rows of a block."""
    G: gl.constexpr = H // HKV
    q_smem = q_smem.index(i_group)
    dtype: gl.constexpr = p_y.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, KEYS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, D, 16])
    seen_by_all = (past + first // G + 1) // KEYS
    first += i_group * _GROUP
    b_o = gl.zeros([_GROUP, D], gl.float32, OUT)
    if num_tiles > 0:
        o_in, m_in = _part(first, num_rows, H * D, D, G, D)
        async_copy.async_copy_global_to_shared(q_smem, p_queries + o_in, mask=m_in)
        async_copy.commit_group()
        async_copy.wait_group(0)
        fence_async_shared()
        b_s = warpgroup_mma_wait(0, deps=[_scores(q_smem, _await(keys, 0), SCORES)])
        _give_back(keys, 0)
        o_m = past + (first + gl.arange(0, _GROUP, gl.SliceLayout(1, SCORES))) // G
        b_s = gl.where(gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))[None, :] <= o_m[:, None], b_s, float("-inf"))
        b_max = gl.full([_GROUP], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
        b_w, _b_shrink, b_max, b_sum = _weigh(b_s, b_max, gl.zeros_like(b_max), scale)
        b_p = gl.convert_layout(b_w.to(dtype), gl.DotOperandLayout(0, OUT, 2))
        middle = gl.maximum(seen_by_all, 1)
        b_o, b_max, b_sum, b_p = _attend(
            b_o, b_max, b_sum, b_p, q_smem, keys, values, o_m, 1, middle, scale, False, SCORES, OUT
        )
        b_o, b_max, b_sum, b_p = _attend(
            b_o, b_max, b_sum, b_p, q_smem, keys, values, o_m, middle, num_tiles, scale, True, SCORES, OUT
        )
        # The gates take the queries' place, for which nobody asks any more.
        first = _anew(first)
        o_in, m_in = _part(first, num_rows, ROW, 2 * D, G, D)
        async_copy.async_copy_global_to_shared(q_smem, p_gates + o_in, mask=m_in)
        async_copy.commit_group()
        v_last = _await(values, num_tiles - 1)
        _clear(values, num_tiles - 1, context, PAGE)
        b_o = warpgroup_mma(b_p, v_last, b_o)
        async_copy.wait_group(0)
        # sigmoid(x) = 1 / (1 + exp(-x)), whose division is the square of a reciprocal root.
        b_root = gl.rsqrt(1 + gl.exp2(q_smem.load(OUT).to(gl.float32) * -LOG2E))
        b_o = b_o * gl.convert_layout(1 / b_sum, gl.SliceLayout(1, OUT))[:, None] * (b_root * b_root)
    if first < num_rows:
        q_smem.store(b_o.to(dtype))
        o_in, m_in = _part(_anew(first), num_rows, H * D, D, G, D)
        gl.store(p_y + o_in, q_smem.load(_BY_ROWS), mask=m_in)


@gluon.jit
def _part(first, num_rows, TOKEN: gl.constexpr, HEAD: gl.constexpr, G: gl.constexpr, D: gl.constexpr):
    """Offsets of a group's rows (token, head of the group) within their sequence, and which of them there are."""
    o_r = gl.arange(0, _GROUP, gl.SliceLayout(1, _BY_ROWS))
    if _GROUP % G == 0:  # a token's rows are all in one group: offsets are constants but for the first
        o_in = (first // G).to(gl.int64) * TOKEN + (o_r // G * TOKEN + o_r % G * HEAD)
    else:
        o_in = ((first + o_r) // G).to(gl.int64) * TOKEN + (first + o_r) % G * HEAD
    return o_in[:, None] + gl.arange(0, D, gl.SliceLayout(0, _BY_ROWS))[None, :], (first + o_r < num_rows)[:, None]


@gluon.jit
def _anew(x):
    """x, as if it were another: what follows is computed when it is needed, and holds no registers until then."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@kernel(jit=gluon.jit)
def _attention_prefill_hopper_kernel(
    queries_ptr,  # [T, H, D]
    packed_ptr,  # [T, ROW]: for each head its query, then its gate
    keys_ptr,  # [pages, PAGE, HKV, D]
    values_ptr,  # likewise
    page_table_ptr,  # [N, table_width]
    context_lens_ptr,  # [N]
    cu_seqlens_ptr,  # [N + 1]
    y_ptr,  # [T, H, D]
    scale: tl.float32,
    first_token: tl.int32,
    num_tokens: tl.int32,
    num_sequences: tl.int32,
    num_blocks: tl.int32,
    table_width: tl.int32,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    ROW: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Program: block of rows x key head, as in attention_prefill.py."""
    G: gl.constexpr = H // HKV
    dtype: gl.constexpr = y_ptr.dtype.element_ty
    i_h = gl.program_id(0) % HKV
    i_block = num_blocks - 1 - gl.program_id(0) // HKV
    i_n = gl.to_tensor(-1)
    for some in range(0, num_sequences + 1, 128):
        o_n = some + gl.arange(0, 128, gl.BlockedLayout([1], [32], [_WARPS], [0]))
        b_before = gl.load(cu_seqlens_ptr + o_n, mask=o_n <= num_sequences, other=0) - first_token
        begins = b_before * G // ROWS + o_n
        i_n += gl.sum(((begins <= i_block) & (o_n <= num_sequences)).to(gl.int32), axis=0)
    context = gl.load(context_lens_ptr + i_n, mask=i_n < num_sequences, other=0)
    begin = gl.load(cu_seqlens_ptr + i_n)
    end = gl.load(cu_seqlens_ptr + i_n + 1, mask=i_n < num_sequences, other=num_tokens)
    first = (i_block - (begin - first_token) * G // ROWS - i_n) * ROWS  # within the sequence
    length = end - begin
    past = context - length
    seen = gl.minimum(past + (first + ROWS - 1) // G + 1, context)
    # Neither padding nor what is left over of a sequence's last block sees any.
    num_tiles = gl.where((i_n < num_sequences) & (first < length * G), gl.cdiv(seen, KEYS), 0)

    q_smem = gl.allocate_shared_memory(dtype, [ROWS // _GROUP, _GROUP, D], _TILES)
    keys = _stages(_KEY_STAGES, D, dtype)
    values = _stages(_VALUE_STAGES, D, dtype)
    p_queries = queries_ptr + (begin.to(gl.int64) * H + i_h * G) * D
    p_gates = packed_ptr + (begin.to(gl.int64) * ROW + (i_h * G * 2 + 1) * D)
    p_y = y_ptr + (begin.to(gl.int64) * H + i_h * G) * D
    p_keys, p_values = keys_ptr + i_h * D, values_ptr + i_h * D
    p_table = page_table_ptr + i_n.to(gl.int64) * table_width
    num_rows = length * G
    gl.warp_specialize(
        [
            (_multiply, (0, p_queries, p_gates, p_y, num_rows, past, context, first, num_tiles, scale, q_smem, keys,
                         values, H, HKV, D, ROW, PAGE)),
            (_multiply, (1, p_queries, p_gates, p_y, num_rows, past, context, first, num_tiles, scale, q_smem, keys,
                         values, H, HKV, D, ROW, PAGE)),
            (_copy, (p_keys, keys, p_table, num_tiles, context, HKV, D, PAGE)),
            (_copy, (p_values, values, p_table, num_tiles, context, HKV, D, PAGE)),
        ],
        [_WARPS, 1, 1],
        [_MULTIPLY_REGISTERS, _COPY_REGISTERS, _COPY_REGISTERS],
    )  # fmt: skip


@gluon.jit
def _stages(N: gl.constexpr, D: gl.constexpr, dtype: gl.constexpr):
    """Tiles in shared memory, and for each two barriers: all of it has come; all groups have done with it."""
    smem = gl.allocate_shared_memory(dtype, [N, KEYS, D], _TILES)
    full = gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(N):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(free.index(i), count=ROWS // _GROUP)
    return smem, full, free


def hopper_serves(dims: AttentionDims, dtype: torch.dtype, page: int) -> bool:
    """Whether this kernel is the way on the active GPU, for heads and pages like these."""
    fits = dims.head_dim == 256 and page in PAGES and dtype.itemsize == 2
    return fits and triton.__version__.startswith(TRITONS) and current_target().arch == 90


def _warmup(space: LaunchSpace) -> None:
    """By the op that launches it, which imports it."""
    from hotstart.kernels import attention_prefill

    attention_prefill.warm_up(space, on_hopper=True)


launch_on_hopper = Launcher(_attention_prefill_hopper_kernel, warmup=_warmup)
