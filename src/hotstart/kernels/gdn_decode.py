"""One token of the Gated DeltaNet mixer for each decoding sequence: states are read and written in place, by slot.

The mathematics and the reference are in gdn.py.  Two launches: the convolution, then the rule with the gated norm.
The convolution is a launch of its own because several value heads read the channels of one key head: whoever shifts
the conv slot of a key head must be the only one that reads it.  Here each channel belongs to one program.  In the
second launch each program owns one value head of one sequence, so its state too has one reader and one writer.

From sm_90 on the second launch begins while the first still runs: it loads its states, and waits only then for the
convolution.

With a = exp(g), reading the old state once is enough, because S' = a S + d k^T:

    p = S k;  r = S q;  d = beta (v - a p);  o = a r + (k.q) d

The state is one tile, and tiles are fixed: a kernel that works in place is never tuned.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hotstart.kernels.launch import Launcher, LaunchSpace, kernel, launches_overlap
from hotstart.kernels.ops import DecodeStep, GdnDims, GdnWeights

__all__ = ["gdn_decode"]

_BLOCK_C = 1024


@kernel
def _conv_step_kernel(
    packed_ptr,  # [T, ROW]
    weight_ptr,  # [C, W]
    conv_ptr,  # [slots, W - 1, C]
    read_slots_ptr,  # [N]
    write_slots_ptr,  # [N]
    u_ptr,  # [N, C]
    C: tl.constexpr,
    W: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
    num_blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    i_p = tl.program_id(0)
    i_n, i_c = (i_p // num_blocks).to(tl.int64), i_p % num_blocks
    i_read = tl.load(read_slots_ptr + i_n).to(tl.int64)
    i_write = tl.load(write_slots_ptr + i_n).to(tl.int64)
    if i_write < 0:
        return
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    o_w = tl.arange(0, BLOCK_W)
    m_c = o_c < C
    o_old = o_w[:, None] * C + o_c[None, :]
    m_old = (o_w < W - 1)[:, None] & m_c[None, :]
    m_read = (o_w < tl.where(i_read < 0, 0, W - 1))[:, None] & m_c[None, :]
    b_old = tl.load(conv_ptr + i_read * (W - 1) * C + o_old, mask=m_read, other=0)
    b_x = tl.load(packed_ptr + i_n * ROW + o_c, mask=m_c, other=0)
    b_w = tl.load(weight_ptr + o_c[None, :] * W + o_w[:, None], mask=m_old, other=0).to(tl.float32)
    b_w_last = tl.load(weight_ptr + o_c * W + W - 1, mask=m_c, other=0).to(tl.float32)
    b_u = tl.sum(b_old.to(tl.float32) * b_w, axis=0) + b_x.to(tl.float32) * b_w_last
    tl.store(u_ptr + i_n * C + o_c, b_u * tl.sigmoid(b_u), mask=m_c)
    # Threads may hold elements twice: all must have read the old rows before one shifts them.
    tl.debug_barrier()
    m_shift = m_old & (o_w >= 1)[:, None]
    tl.store(conv_ptr + i_write * (W - 1) * C + o_old - C, b_old, mask=m_shift)
    tl.store(conv_ptr + i_write * (W - 1) * C + (W - 2) * C + o_c, b_x, mask=m_c)


@kernel
def _gdn_step_kernel(
    packed_ptr,  # [T, ROW]
    u_ptr,  # [N, C]: q | k | v after the convolution
    A_log_ptr,  # [HV]
    dt_bias_ptr,  # [HV]
    norm_ptr,  # [V]
    state_ptr,  # [slots, HV, V, K]
    read_slots_ptr,  # [N]
    write_slots_ptr,  # [N]
    y_ptr,  # [T, HV, V]
    scale: tl.float32,
    eps: tl.float32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    ROW: tl.constexpr,
    Z_OFFSET: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    C: tl.constexpr = 2 * H * K + HV * V
    i_p = tl.program_id(0).to(tl.int64)
    i_n, i_h = i_p // HV, i_p % HV
    i_k = i_h // (HV // H)
    i_read = tl.load(read_slots_ptr + i_n).to(tl.int64)
    i_write = tl.load(write_slots_ptr + i_n).to(tl.int64)
    if i_write < 0:
        return
    # K is cut into pieces of J: with the pieces as the slowest dim, a thread holds few rows and pieces of all of them,
    # so that a vector over V costs few registers and a sum over K few exchanges between threads.
    J: tl.constexpr = BLOCK_K if BLOCK_K < 32 else 32
    o_v = tl.arange(0, BLOCK_V)
    o_k = tl.arange(0, BLOCK_K // J)[:, None] * J + tl.arange(0, J)[None, :]
    m_k, m_v = o_k < K, o_v < V
    o_s = o_v[None, :, None] * K + o_k[:, None, :]  # [BLOCK_K / J, BLOCK_V, J]
    m_s = m_v[None, :, None] & m_k[:, None, :]
    m_read = (o_v < tl.where(i_read < 0, 0, V))[None, :, None] & m_k[:, None, :]
    b_s = tl.load(state_ptr + (i_read * HV + i_h) * V * K + o_s, mask=m_read, other=0).to(tl.float32)

    # Nothing before this line reads what the convolution writes, nor writes anything.
    if OVERLAP:
        gdc_wait()
    p_u = u_ptr + i_n * C
    b_q = tl.load(p_u + i_k * K + o_k, mask=m_k, other=0)
    b_k = tl.load(p_u + (H + i_k) * K + o_k, mask=m_k, other=0)
    b_v = tl.load(p_u + 2 * H * K + i_h * V + o_v, mask=m_v, other=0)
    b_q *= tl.rsqrt(tl.sum(b_q * b_q) + 1e-6) * scale
    b_k *= tl.rsqrt(tl.sum(b_k * b_k) + 1e-6)

    p_row = packed_ptr + i_n * ROW + Z_OFFSET
    beta = tl.sigmoid(tl.load(p_row + HV * V + i_h).to(tl.float32))
    x = tl.load(p_row + HV * V + HV + i_h).to(tl.float32) + tl.load(dt_bias_ptr + i_h)
    softplus = tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20))))
    decay = tl.exp(-tl.exp(tl.load(A_log_ptr + i_h)) * softplus)

    b_p = tl.sum(tl.sum(b_s * b_k[:, None, :], axis=0), axis=1)
    b_r = tl.sum(tl.sum(b_s * b_q[:, None, :], axis=0), axis=1)
    b_d = beta * (b_v - decay * b_p)
    b_o = decay * b_r + tl.sum(b_k * b_q) * b_d
    b_s = decay * b_s + b_d[None, :, None] * b_k[:, None, :]
    tl.store(state_ptr + (i_write * HV + i_h) * V * K + o_s, b_s.to(state_ptr.dtype.element_ty), mask=m_s)

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

    packed: [T, packed_width]; conv: [slots, W - 1, C]; state: [slots, HV, V, K], float32 or bfloat16;
    out: [T, HV * V].  No two sequences write one slot, and none reads a slot that another one writes.
    """
    C, W, N = dims.conv_channels, dims.conv_width, decode.write_slots.shape[0]
    HV, K, V = dims.num_value_heads, dims.key_dim, dims.value_dim
    assert packed.shape[1] == dims.packed_width and out.shape[1] == HV * V, (packed.shape, out.shape)
    assert conv.shape[1:] == (W - 1, C) and state.shape[1:] == (HV, V, K), (conv.shape, state.shape)
    assert conv.dtype == packed.dtype, (conv.dtype, packed.dtype)
    blocks, of_conv, of_step = _constants(dims, launches_overlap())
    slots = decode.read_slots, decode.write_slots
    u = torch.empty(N, C, dtype=torch.float32, device=packed.device)
    _launch_conv_step((N * blocks,), packed, weights.conv, conv, *slots, u, **of_conv)
    gates = weights.A_log, weights.dt_bias
    _launch_gdn_step((N * HV,), packed, u, *gates, weights.norm, state, *slots, out, K**-0.5, dims.eps, **of_step)


@functools.cache
def _constants(dims: GdnDims, overlap: bool) -> tuple[int, dict[str, int], dict[str, int]]:
    """Blocks of channels, then constants and options of the two launches."""
    block_k, block_v = (triton.next_power_of_2(d) for d in (dims.key_dim, dims.value_dim))
    conv = {
        "C": dims.conv_channels,
        "W": dims.conv_width,
        "ROW": dims.packed_width,
        "BLOCK_C": _BLOCK_C,
        "BLOCK_W": triton.next_power_of_2(dims.conv_width),
        "OVERLAP": overlap,
    }
    # 64 values of the state a thread; at 128 x 128, two programs share a multiprocessor's registers.
    num_warps = min(16, max(1, block_k * block_v // 2048))
    step = {
        "H": dims.num_key_heads,
        "HV": dims.num_value_heads,
        "K": dims.key_dim,
        "V": dims.value_dim,
        "ROW": dims.packed_width,
        "Z_OFFSET": dims.z_offset,
        "BLOCK_K": block_k,
        "BLOCK_V": block_v,
        "OVERLAP": overlap,
        "launch_pdl": overlap,
        "num_warps": num_warps,
        **({"maxnreg": 128} if num_warps == 8 else {}),
    }
    return triton.cdiv(dims.conv_channels, _BLOCK_C), conv, step


def _warmup(space: LaunchSpace) -> None:
    dims = space.gdn
    if dims is None:
        return
    for dtype in space.activation_dtypes:
        packed, weights, conv, state = space.gdn_inputs(dims, dtype)
        out = space.tokens(dims.num_value_heads * dims.value_dim, dtype)
        gdn_decode(packed, weights, conv, state, space.step(space.device).decode, dims, out)


_launch_conv_step = Launcher(_conv_step_kernel, warmup=_warmup, in_place=True)
_launch_gdn_step = Launcher(_gdn_step_kernel, warmup=_warmup, in_place=True)
