"""Products of few tokens with weights, joined to what stands around them in a layer: a stream of the weights.

    norm_linear   rms_norm(x) W^T; a row's factor is applied to its product
    norm_swiglu   silu(g) * u of the products g | u of rms_norm(x) with a gate and an up projection
    add_linear    r + x W^T, in place of r

With few tokens a product takes as long as its weights take to arrive.  So a program asks for all weights of its columns
at once, and only then waits for the launch before it, on which they do not depend: a kernel's first weights arrive
while the one before it ends.  Sums are float32 and of one order, and no row of x is read for another's sake.
More rows, other dtypes, and GPUs whose launches do not overlap have cuBLAS's products between kernels of ours.
"""

from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.activation import silu_mul
from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel, launches_overlap
from hotstart.kernels.norm import rms_norm

__all__ = ["MOST_ROWS", "add_linear", "is_streamed", "linear", "norm_linear", "norm_swiglu", "stream"]

MOST_ROWS = 4


@triton.jit
def _piece(p, i, o_k, WORDS: tl.constexpr, BLOCK_K: tl.constexpr, KEEP: tl.constexpr):
    """Piece i of one row, or of each row of a column of them, in words of two values."""
    policy: tl.constexpr = "" if KEEP else "evict_first"
    if WORDS % BLOCK_K == 0:
        return tl.load(p + i * BLOCK_K + o_k, eviction_policy=policy)
    return tl.load(p + i * BLOCK_K + o_k, i * BLOCK_K + o_k < WORDS, 0, eviction_policy=policy)


@triton.jit
def _low(b_words):
    return (b_words << 16).to(tl.float32, bitcast=True)


@triton.jit
def _high(b_words):
    return (b_words & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _sums(
    p_x, p_norm, b_ws, b_us, o_k,
    WORDS: tl.constexpr, PIECES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, NORM: tl.constexpr,
    TWO: tl.constexpr,
):  # fmt: skip
    """What sums to a row's products with the columns of b_ws, with those of b_us if TWO, and to its square."""
    b_y = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    b_u = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    b_ss = tl.zeros([BLOCK_K], tl.float32)
    for i in tl.static_range(PIECES):
        b_xx = _piece(p_x, i, o_k, WORDS, BLOCK_K, True)
        b_x0 = _low(b_xx)
        b_x1 = _high(b_xx)
        if NORM:
            b_ss += b_x0 * b_x0
            b_ss += b_x1 * b_x1
            b_gg = _piece(p_norm, i, o_k, WORDS, BLOCK_K, True)
            b_x0 += b_x0 * _low(b_gg)
            b_x1 += b_x1 * _high(b_gg)
        b_y += _low(b_ws[i]) * b_x0[None, :]
        b_y += _high(b_ws[i]) * b_x1[None, :]
        if TWO:
            b_u += _low(b_us[i]) * b_x0[None, :]
            b_u += _high(b_us[i]) * b_x1[None, :]
    return b_y, b_u, b_ss


@kernel
def _linear_few_kernel(
    x_ptr,  # [T, K], bfloat16 as all of them
    norm_ptr,  # [K]
    weight_ptr,  # [N, K]; "swiglu": gate | up [2 N, K]
    y_ptr,  # [T, N]; "add": added to
    N: tl.int32,
    eps: tl.float32,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    END: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Program: a few columns, for all rows."""
    if OVERLAP:
        gdc_launch_dependents()
    WORDS: tl.constexpr = K // 2
    PIECES: tl.constexpr = (WORDS + BLOCK_K - 1) // BLOCK_K
    i_n = tl.program_id(0)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_n = o_n < N
    # Words, since what becomes of a value right behind its load would wait for it before the launch before has ended.
    p_x = x_ptr.to(tl.pointer_type(tl.uint32))
    p_norm = norm_ptr.to(tl.pointer_type(tl.uint32))
    p_first = weight_ptr.to(tl.pointer_type(tl.uint32))
    p_w = p_first + tl.minimum(o_n, N - 1).to(tl.int64)[:, None] * WORDS  # a mask would cost what a product does
    p_u = p_w + N.to(tl.int64) * WORDS
    b_ws = ()
    b_us = ()
    for i in tl.static_range(PIECES):
        b_ws += (_piece(p_w, i, o_k[None, :], WORDS, BLOCK_K, False),)
        if END == "swiglu":
            b_us += (_piece(p_u, i, o_k[None, :], WORDS, BLOCK_K, False),)
    if OVERLAP:
        gdc_wait()
    for r in tl.static_range(ROWS):
        if END == "add":
            b_before = tl.load(y_ptr + r * N + o_n, m_n, 0).to(tl.float32)
        b_y, b_u, b_ss = _sums(
            p_x + r * WORDS, p_norm, b_ws, b_us, o_k, WORDS, PIECES, BLOCK_N, BLOCK_K, NORM, END == "swiglu"
        )
        b_out = tl.sum(b_y, axis=1)
        if NORM:
            scale = tl.rsqrt(tl.sum(b_ss, axis=0) / K + eps)
            b_out *= scale
        if END == "swiglu":
            b_up = tl.sum(b_u, axis=1)
            if NORM:
                b_up *= scale
            b_out *= tl.sigmoid(b_out) * b_up
        if END == "add":
            b_out += b_before
        tl.store(y_ptr + r * N + o_n, b_out.to(y_ptr.dtype.element_ty), m_n)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x: [T, K], weight: [N, K] -> [T, N]."""
    N = weight.shape[0]
    if not is_streamed("store", x, N, has_norm=False):
        return F.linear(x, weight)
    return stream("store", x, weight, x.new_empty(x.shape[0], N))


def norm_linear(x: Tensor, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
    """x: [T, K], norm: [K], weight: [N, K] -> [T, N]."""
    N = weight.shape[0]
    if not is_streamed("store", x, N, has_norm=True):
        return F.linear(rms_norm(x, norm, eps), weight)
    return stream("store", x, weight, x.new_empty(x.shape[0], N), norm, eps)


def norm_swiglu(x: Tensor, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
    """x: [T, K], norm: [K], weight: gate | up [2 N, K] -> [T, N]."""
    N = weight.shape[0] // 2
    if not is_streamed("swiglu", x, N, has_norm=True):
        return silu_mul(F.linear(rms_norm(x, norm, eps), weight))
    return stream("swiglu", x, weight, x.new_empty(x.shape[0], N), norm, eps)


def add_linear(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """residual: [T, N], in place, x: [T, K], weight: [N, K]."""
    if not is_streamed("add", x, weight.shape[0], has_norm=False):
        return residual.addmm_(x, weight.T)
    return stream("add", x, weight, residual)


def is_streamed(end: str, x: Tensor, N: int, *, has_norm: bool) -> bool:
    """Whether products of these rows take the kernel below: where it is faster (the table in docs/DECODE.md)."""
    T, K = x.shape
    if end == "add":
        most = MOST_ROWS if N * K <= 1 << 22 else 2 if K <= 4096 else 1
    else:
        most = 2 if K < 4096 or not has_norm else 1
    return most >= T and x.dtype == torch.bfloat16 and K % 8 == 0 and launches_overlap()


def stream(end: str, x: Tensor, weight: Tensor, y: Tensor, norm: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """The kernel, made for up to `MOST_ROWS` rows: x [T, K], y [T, N]."""
    (T, K), N = x.shape, y.shape[1]
    assert weight.shape == (2 * N if end == "swiglu" else N, K), (end, x.shape, weight.shape, y.shape)
    if not T:
        return y
    launch, block_n = _bound(end, K, T, norm is not None)
    launch((-(-N // block_n),), x, x if norm is None else norm, weight, y, N, eps)
    return y


@cache
def _bound(end: str, K: int, T: int, has_norm: bool) -> tuple[BoundLaunch, int]:
    """And the columns of a program."""
    block_n, warps = _cut(end, K)
    launch = _launch.bind(
        K=K,
        ROWS=T,
        BLOCK_N=block_n,
        BLOCK_K=128 * warps,
        NORM=has_norm,
        END=end,
        num_warps=warps,
    )
    return launch, block_n


def _cut(end: str, K: int) -> tuple[int, int]:
    """Columns of a program, and warps: so that a thread holds about as many weights as registers take."""
    warps = 2 if K < 4096 else 4 if K < 8192 else 8
    columns = 4 if warps * 1792 >= K else 2
    return (columns // 2 if end == "swiglu" else columns), warps


def _warmup(space: LaunchSpace) -> None:
    """No number of columns is part of a key, so a few are enough."""
    D, widths = space.hidden_size, set(space.mlp_widths)
    if space.gdn is not None:
        widths.add(space.gdn.num_value_heads * space.gdn.value_dim)
    if space.attention is not None:
        widths.add(space.attention.num_heads * space.attention.head_dim)
    for dtype, count in product(space.activation_dtypes, range(1, MOST_ROWS + 1)):
        x, norm, weight = (space.empty(*shape, dtype=dtype) for shape in ((count, D), (D,), (64, D)))
        if is_streamed("store", x, 64, has_norm=True):
            norm_linear(x, norm, space.eps, weight)
            if space.mlp_widths:
                norm_swiglu(x, norm, space.eps, weight)
        for width in sorted(widths):
            add_linear(x, space.empty(count, width, dtype=dtype), space.empty(D, width, dtype=dtype))
        for width in (D, *space.shared_widths):
            linear(space.empty(count, width, dtype=dtype), space.empty(64, width, dtype=dtype))


_launch = Launcher(_linear_few_kernel, warmup=_warmup, in_place=True)
