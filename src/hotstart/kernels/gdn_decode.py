"""One token of the Gated DeltaNet mixer for each decoding sequence: states are read and written in place, by slot.

The mathematics and the reference are in gdn.py.  One launch: a program owns one value head of one sequence, so that its
state has one reader and one writer.  Several value heads read the inputs of one key head, and the first of them writes
the new ones: into a row of the ring (causal_conv.py) that nobody reads.

With a = exp(g), reading the old state once is enough, because S' = a S + d k^T:

    p = S k;  r = S q;  d = beta (v - a p);  o = a r + (k.q) d

The state is one tile, and tiles are fixed: a kernel that works in place is never tuned.
"""

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import BoundLaunch, Launcher, LaunchSpace, kernel, launches_overlap
from hotstart.kernels.ops import DecodeStep, GdnDims, GdnWeights

__all__ = ["gdn_decode"]


@triton.jit
def _conv_step(
    packed_ptr, conv_ptr, weight_ptr, i_n, read, write, position, o_c, m_c, writes,
    CHANNELS: tl.constexpr, W: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """u of the channels o_c.  If this program `writes`: their new inputs, and where the slot changes, the old ones."""
    b_u = tl.zeros(o_c.shape, tl.float32)
    for j in tl.static_range(W):
        o_x = (position + 1 + j) % W * CHANNELS + o_c
        if j < W - 1:
            b_x = tl.load(conv_ptr + read * (W * CHANNELS) + o_x, mask=m_c & (read >= 0), other=0)
            m_x = m_c & writes & (read != write)
        else:
            b_x = tl.load(packed_ptr + i_n * ROW + o_c, mask=m_c, other=0)
            m_x = m_c & writes
        tl.store(conv_ptr + write * (W * CHANNELS) + o_x, b_x, mask=m_x)
        b_u += b_x.to(tl.float32) * tl.load(weight_ptr + o_c * W + j, mask=m_c, other=0).to(tl.float32)
    return b_u * tl.sigmoid(b_u)


@kernel
def _gdn_step_kernel(
    packed_ptr,  # [T, ROW]
    weight_ptr,  # [CHANNELS, W]
    A_log_ptr,  # [HV]
    dt_bias_ptr,  # [HV]
    norm_ptr,  # [V]
    conv_ptr,  # [slots, W, CHANNELS]
    state_ptr,  # [slots, HV, V, K]
    context_lens_ptr,  # [N]
    read_slots_ptr,  # [N]
    write_slots_ptr,  # [N]
    y_ptr,  # [T, HV, V]
    scale: tl.float32,
    eps: tl.float32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    CHANNELS: tl.constexpr = 2 * H * K + HV * V
    i_p = tl.program_id(0).to(tl.int64)
    i_n, i_h = i_p // HV, i_p % HV
    i_k = i_h // (HV // H)
    read = tl.load(read_slots_ptr + i_n).to(tl.int64)
    write = tl.load(write_slots_ptr + i_n).to(tl.int64)
    if write < 0:
        return
    position = tl.load(context_lens_ptr + i_n) - 1
    # K is cut into pieces of J: with the pieces as the slowest dim, a thread holds few rows and pieces of all of them,
    # so that a vector over V costs few registers and a sum over K few exchanges between threads.
    J: tl.constexpr = BLOCK_K if BLOCK_K < 32 else 32
    o_v = tl.arange(0, BLOCK_V)
    o_k = tl.arange(0, BLOCK_K // J)[:, None] * J + tl.arange(0, J)[None, :]
    m_k, m_v = o_k < K, o_v < V
    o_s = o_v[None, :, None] * K + o_k[:, None, :]  # [BLOCK_K / J, BLOCK_V, J]
    m_s = m_v[None, :, None] & m_k[:, None, :]
    b_s = tl.load(state_ptr + (read * HV + i_h) * V * K + o_s, mask=m_s & (read >= 0), other=0).to(tl.float32)

    at = packed_ptr, conv_ptr, weight_ptr, i_n, read, write, position
    is_first = i_h % (HV // H) == 0
    b_q = _conv_step(*at, i_k * K + o_k, m_k, is_first, CHANNELS, W, ROW)
    b_k = _conv_step(*at, (H + i_k) * K + o_k, m_k, is_first, CHANNELS, W, ROW)
    b_v = _conv_step(*at, 2 * H * K + i_h * V + o_v, m_v, True, CHANNELS, W, ROW)
    b_q *= tl.rsqrt(tl.sum(b_q * b_q) + 1e-6) * scale
    b_k *= tl.rsqrt(tl.sum(b_k * b_k) + 1e-6)

    p_row = packed_ptr + i_n * ROW + CHANNELS
    beta = tl.sigmoid(tl.load(p_row + HV * V + i_h).to(tl.float32))
    x = tl.load(p_row + HV * V + HV + i_h).to(tl.float32) + tl.load(dt_bias_ptr + i_h)
    softplus = tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20))))
    decay = tl.exp(-tl.exp(tl.load(A_log_ptr + i_h)) * softplus)

    b_p = tl.sum(tl.sum(b_s * b_k[:, None, :], axis=0), axis=1)
    b_r = tl.sum(tl.sum(b_s * b_q[:, None, :], axis=0), axis=1)
    b_d = beta * (b_v - decay * b_p)
    b_o = decay * b_r + tl.sum(b_k * b_q) * b_d
    b_s = decay * b_s + b_d[None, :, None] * b_k[:, None, :]
    tl.store(state_ptr + (write * HV + i_h) * V * K + o_s, b_s.to(state_ptr.dtype.element_ty), mask=m_s)

    b_z = tl.load(p_row + i_h * V + o_v, mask=m_v, other=0).to(tl.float32)
    b_w = tl.load(norm_ptr + o_v, mask=m_v, other=0)
    b_y = b_o * tl.rsqrt(tl.sum(b_o * b_o, axis=0) / V + eps) * b_w * b_z * tl.sigmoid(b_z)
    tl.store(y_ptr + i_p * V + o_v, b_y.to(y_ptr.dtype.element_ty), mask=m_v)


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

    packed: [T, packed_width]; conv: [slots, W, C]; state: [slots, HV, V, K], float32 or bfloat16;
    out: [T, HV * V].  No two sequences write one slot, and none reads a slot that another one writes.
    """
    HV, K, V = dims.num_value_heads, dims.key_dim, dims.value_dim
    at = _constants(dims, launches_overlap())
    assert packed.shape[1] == at.packed_width and out.shape[1] == HV * V, (packed.shape, out.shape)
    assert conv.shape[1:] == at.conv_shape and state.shape[1:] == (HV, V, K), (conv.shape, state.shape)
    assert conv.dtype == packed.dtype, (conv.dtype, packed.dtype)
    at.launch(
        (decode.write_slots.shape[0] * HV,), packed, weights.conv, weights.A_log, weights.dt_bias, weights.norm, conv,
        state, decode.context_lens, decode.read_slots, decode.write_slots, out, at.scale, dims.eps,
    )  # fmt: skip


class Constants(NamedTuple):
    launch: BoundLaunch
    packed_width: int
    conv_shape: tuple[int, int]
    scale: float


@functools.cache
def _constants(dims: GdnDims, overlap: bool) -> Constants:
    block_k, block_v = (triton.next_power_of_2(d) for d in (dims.key_dim, dims.value_dim))
    # 64 values of the state a thread; at 128 x 128, two programs share a multiprocessor's registers.
    num_warps = min(16, max(1, block_k * block_v // 2048))
    launch = _launch_gdn_step.bind(
        H=dims.num_key_heads,
        HV=dims.num_value_heads,
        K=dims.key_dim,
        V=dims.value_dim,
        W=dims.conv_width,
        ROW=dims.packed_width,
        BLOCK_K=block_k,
        BLOCK_V=block_v,
        OVERLAP=overlap,
        launch_pdl=overlap,
        num_warps=num_warps,
        **({"maxnreg": 128} if num_warps == 8 else {}),
    )
    return Constants(launch, dims.packed_width, (dims.conv_width, dims.conv_channels), dims.key_dim**-0.5)


def _warmup(space: LaunchSpace) -> None:
    dims = space.gdn
    if dims is None:
        return
    for dtype in space.activation_dtypes:
        packed, weights, conv, state = space.gdn_inputs(dims, dtype)
        out = space.tokens(dims.num_value_heads * dims.value_dim, dtype)
        gdn_decode(packed, weights, conv, state, space.step(space.device).decode, dims, out)


_launch_gdn_step = Launcher(_gdn_step_kernel, warmup=_warmup, in_place=True)
