"""The chunked delta rule of a library, between our convolution and our gated norm: flash-linear-attention, FlashInfer.

What stands around the core is ours, so that states are read and written by slot as everywhere: `_inputs_kernel` makes
q, k, v and the gates of the packed rows, and keeps the inputs that the next step's convolution needs; the library runs
the rule; the kernel that ends our own prefill (gdn_norm.py) norms what it gave.  The states of the step's sequences are
gathered for the library and scattered back, and memory is the library's own: start-up measures it like all of a step.

The cores are operators of torch with a form for meta tensors, which has shapes alone: a library is called, and warmed,
on real tensors only.

Sources: flash-linear-attention 0.6.0, `fla.ops.gated_delta_rule.chunk_gated_delta_rule`; FlashInfer 0.6.13 and 0.7.2,
`flashinfer.gdn_prefill.chunk_gated_delta_rule`, whose g is exp of the log decay.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotstart.kernels.gdn_conv import keep_inputs
from hotstart.kernels.gdn_math import L2_EPS, log_decay
from hotstart.kernels.gdn_norm import NORM_ROWS, launch_norm
from hotstart.kernels.launch import Launcher, LaunchSpace, kernel
from hotstart.kernels.ops import EXTERNAL, GdnDims, GdnWeights
from hotstart.kernels.step import PrefillInputs

__all__ = ["gdn_prefill_fla", "gdn_prefill_flashinfer", "warmup"]

# A library that tunes itself does so on the first prompts it sees: these, before the step's own short ones.
_WARMUP_LENGTHS = (512,) * 4


@triton.jit
def _convolved(
    packed_ptr, conv_ptr, weight_ptr, token, slot, start, is_first, o_c, o_d, m, m_d,
    C: tl.constexpr, BLOCK_D: tl.constexpr, W: tl.constexpr, ROW: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of a chunk's channels o_d.  Before it lie the sequence's previous tokens, or the slot that has them."""
    b_u = tl.zeros([C, BLOCK_D], tl.float32)
    for j in tl.static_range(W):
        o_w = o_c + (j - W + 1)
        m_x = m & ((o_w >= 0) | (not is_first))[:, None]
        b_x = tl.load(packed_ptr + (token + o_w)[:, None] * ROW + o_d[None, :], m_x, 0)
        m_old = m & (is_first & (o_w < 0) & (slot >= 0))[:, None]
        b_x += tl.load(conv_ptr + (slot * W + (start + o_w + W) % W)[:, None] * CHANNELS + o_d[None, :], m_old, 0)
        b_w = tl.load(weight_ptr + o_d * W + j, m_d, 0)
        b_u += b_x.to(tl.float32) * b_w.to(tl.float32)[None, :]
    return b_u


@kernel
def _inputs_kernel(
    packed_ptr,  # [T, ROW]
    conv_ptr,  # [slots, W, CHANNELS]
    weight_ptr,  # [CHANNELS, W]
    A_log_ptr,  # [HV]
    dt_bias_ptr,  # [HV]
    q_ptr,  # [P, H, K]
    k_ptr,  # [P, H, K]
    v_ptr,  # [P, HV, V]
    g_ptr,  # [P, HV]
    beta_ptr,  # [P, HV]
    chunks_ptr,  # [*, 4]
    read_slots_ptr,  # [N]
    write_slots_ptr,  # [N]
    context_lens_ptr,  # [N]
    cu_seqlens_ptr,  # [N + 1]
    first_token: tl.int32,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    ROW: tl.constexpr,
    C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    LINEAR: tl.constexpr,
):
    """Program: chunk x head of q, of k, or of v, which brings its gates.  LINEAR: g is the decay, not its logarithm."""
    HEADS: tl.constexpr = 2 * H + HV
    CHANNELS: tl.constexpr = 2 * H * K + HV * V
    i_p = tl.program_id(0).to(tl.int64)
    i_h = i_p % HEADS
    p_chunk = chunks_ptr + i_p // HEADS * 4
    token = tl.load(p_chunk + 1).to(tl.int64)
    n = tl.load(p_chunk + 2)
    is_first = tl.load(p_chunk + 3) == 0
    i_n = tl.load(p_chunk)
    slot = tl.load(read_slots_ptr + i_n).to(tl.int64)
    length = tl.load(cu_seqlens_ptr + i_n + 1) - tl.load(cu_seqlens_ptr + i_n)
    context = tl.load(context_lens_ptr + i_n)
    is_value = i_h >= 2 * H
    i_hv = i_h - 2 * H
    width = tl.where(is_value, V, K)
    channel = tl.where(is_value, 2 * H * K + i_hv * V, i_h * K)

    o_c, o_d = tl.arange(0, C), tl.arange(0, BLOCK_D)
    m_c = o_c < n
    m = m_c[:, None] & (o_d < width)[None, :]
    b_u = _convolved(
        packed_ptr, conv_ptr, weight_ptr, token, slot, context - length, is_first, o_c, channel + o_d, m, o_d < width,
        C, BLOCK_D, W, ROW, CHANNELS,
    )  # fmt: skip
    b_u *= tl.sigmoid(b_u)
    write_slot = tl.load(write_slots_ptr + i_n).to(tl.int64)
    if is_first & (write_slot >= 0):
        tl.debug_barrier()  # all have read the slot
        keep_inputs(
            packed_ptr, conv_ptr, token, length, context, slot, write_slot, channel + o_d, o_d < width,
            ROW, CHANNELS, W, BLOCK_W,
        )  # fmt: skip

    row = token - first_token + o_c
    if is_value:
        p_v = v_ptr + (row * HV + i_hv)[:, None] * V + o_d[None, :]
        tl.store(p_v, b_u.to(v_ptr.dtype.element_ty), m)
        p_b = packed_ptr + (token + o_c) * ROW + CHANNELS + HV * V + i_hv
        tl.store(beta_ptr + row * HV + i_hv, tl.sigmoid(tl.load(p_b, m_c, 0).to(tl.float32)), m_c)
        x = tl.load(p_b + HV, m_c, 0).to(tl.float32) + tl.load(dt_bias_ptr + i_hv)
        g = log_decay(x, tl.load(A_log_ptr + i_hv))
        if LINEAR:
            g = tl.exp(g)
        tl.store(g_ptr + row * HV + i_hv, g, m_c)
    else:
        b_u *= tl.rsqrt(tl.sum(b_u * b_u, axis=1) + L2_EPS)[:, None]
        i_k = i_h % H
        o_k = (row * H + i_k)[:, None] * K + o_d[None, :]
        tl.store(q_ptr + o_k, b_u.to(q_ptr.dtype.element_ty), m & (i_h < H))
        tl.store(k_ptr + o_k, b_u.to(k_ptr.dtype.element_ty), m & (i_h >= H))


Core = Callable[..., tuple[Tensor, Tensor]]


@functools.cache
def _of_fla() -> Callable[..., Any]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule  # type: ignore[no-any-return]  # the library has no types


@functools.cache
def _of_flashinfer() -> Callable[..., Any]:
    from flashinfer.gdn_prefill import chunk_gated_delta_rule

    # From 0.7 on it may split a sequence by what else is in the step, and results would depend on neighbours.
    known = inspect.signature(chunk_gated_delta_rule).parameters
    return functools.partial(chunk_gated_delta_rule, **({"use_cp": False} if "use_cp" in known else {}))


def _fla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, states: Tensor, cu_seqlens: Tensor, chunks: Tensor, C: int
) -> tuple[Tensor, Tensor]:
    one = (x.unsqueeze(0) for x in (q, k, v, g, beta))
    out, last = _of_fla()(
        *one,
        initial_state=states,
        output_final_state=True,
        state_v_first=True,
        cu_seqlens=cu_seqlens,
        chunk_indices=chunks,
        chunk_size=C,
    )
    return out.squeeze(0), last


def _flashinfer(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, states: Tensor, cu_seqlens: Tensor, chunks: Tensor, C: int
) -> tuple[Tensor, Tensor]:
    out, last = _of_flashinfer()(
        q,
        k,
        v,
        g=g,
        beta=beta,
        initial_state=states,
        output_final_state=True,
        output_state=torch.empty_like(states),
        cu_seqlens=cu_seqlens,
    )
    return out, last


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, states: Tensor, cu_seqlens: Tensor, chunks: Tensor, C: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v), torch.empty_like(states)


_LIBRARY = torch.library.Library("hotstart", "DEF")
for _name, _core in (("fla", _fla), ("flashinfer", _flashinfer)):
    _LIBRARY.define(
        f"{_name}_gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor states, "
        "Tensor cu_seqlens, Tensor chunks, int C) -> (Tensor, Tensor)"
    )
    _LIBRARY.impl(f"{_name}_gated_delta_rule", _core, "CompositeExplicitAutograd")
    _LIBRARY.impl(f"{_name}_gated_delta_rule", _shapes, "Meta")


def _gdn_prefill(
    core: Core,
    linear: bool,
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    prefill: PrefillInputs,
    dims: GdnDims,
    out: Tensor,
) -> None:
    H, HV, K, V, W = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim, dims.conv_width
    C, P, first = prefill.chunk_length, sum(prefill.lengths), prefill.first_token
    if not P:
        return
    shape = {"H": H, "HV": HV, "K": K, "V": V, "ROW": dims.packed_width, "C": C}
    q, k = (packed.new_empty(P, H, K) for _ in range(2))
    v = packed.new_empty(P, HV, V)
    g, beta = (torch.empty(P, HV, dtype=torch.float32, device=packed.device) for _ in range(2))
    _launch_inputs(
        (prefill.num_chunks * (2 * H + HV),), packed, conv, weights.conv, weights.A_log, weights.dt_bias, q, k, v, g,
        beta, prefill.chunks, prefill.read_slots, prefill.write_slots, prefill.context_lens, prefill.cu_seqlens, first,
        **shape, W=W, BLOCK_D=triton.next_power_of_2(max(K, V)), BLOCK_W=triton.next_power_of_2(W), LINEAR=linear,
    )  # fmt: skip
    states = _gather(state, prefill)
    o, states = core(q, k, v, g, beta, states, prefill.cu_seqlens - first, prefill.chunks[:, ::3].contiguous(), C)
    _scatter(state, states, prefill)
    out[first : first + P].copy_(o.flatten(1))
    launch_norm(
        (prefill.num_chunks * (C // NORM_ROWS) * HV,), packed, weights.norm, out, prefill.chunks, dims.eps,
        **shape, BLOCK_T=NORM_ROWS, BLOCK_V=triton.next_power_of_2(V),
    )  # fmt: skip


def _gather(state: Tensor, prefill: PrefillInputs) -> Tensor:
    """What each sequence starts from, float32; zeros where it starts anew, whatever the slot held, NaN too."""
    reads = prefill.read_slots.long()
    states = state.index_select(0, reads.clamp(min=0)).float()
    return states.masked_fill_((reads < 0).view(-1, 1, 1, 1), 0)


def _scatter(state: Tensor, states: Tensor, prefill: PrefillInputs) -> None:
    writes = prefill.write_slots.long()
    if min(prefill.writes) < 0:  # such a row leaves nothing behind
        kept = torch.tensor([i for i, slot in enumerate(prefill.writes) if slot >= 0], device=state.device)
        writes, states = writes[kept], states[kept]
    state.index_copy_(0, writes, states.to(state.dtype))


def gdn_prefill_fla(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    prefill: PrefillInputs,
    dims: GdnDims,
    out: Tensor,
) -> None:
    """As `Ops.gdn_prefill`, with flash-linear-attention's rule; prefill spans own a slot each."""
    core = torch.ops.hotstart.fla_gated_delta_rule
    _gdn_prefill(core, False, packed, weights, conv, state, prefill, dims, out)


def gdn_prefill_flashinfer(
    packed: Tensor,
    weights: GdnWeights,
    conv: Tensor,
    state: Tensor,
    prefill: PrefillInputs,
    dims: GdnDims,
    out: Tensor,
) -> None:
    """As `Ops.gdn_prefill`, with FlashInfer's rule; prefill spans own a slot each."""
    core = torch.ops.hotstart.flashinfer_gated_delta_rule
    _gdn_prefill(core, True, packed, weights, conv, state, prefill, dims, out)


def warmup(space: LaunchSpace) -> None:
    if space.gdn is None or space.gdn_prefill not in EXTERNAL:
        return
    op = gdn_prefill_fla if space.gdn_prefill == "fla" else gdn_prefill_flashinfer
    dims = space.gdn
    for dtype in space.activation_dtypes:
        for step in (space.prompts(space.device, _WARMUP_LENGTHS), space.step(space.device)):
            rows, slots = step.num_tokens, max(space.num_slots, len(_WARMUP_LENGTHS))
            packed, weights, conv, state = space.sized(rows, slots).gdn_inputs(dims, dtype)
            out = space.empty(rows, dims.num_value_heads * dims.value_dim, dtype=dtype)
            op(packed, weights, conv, state, step.prefill, dims, out)


_launch_inputs = Launcher(_inputs_kernel, warmup=warmup)
