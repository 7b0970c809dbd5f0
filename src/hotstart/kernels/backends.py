"""ops_for: the table of ops of a backend."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch.nn.functional as F

from hotstart.kernels import (
    activation,
    attention,
    attention_prepare,
    draw,
    edits,
    gdn,
    gdn_chunked,
    gdn_decode,
    gdn_external,
    linear,
    linear_skinny,
    moe,
    moe_router,
    norm,
    sampling,
)
from hotstart.kernels.ops import Ops, Prefill

__all__ = ["Backend", "ops_for", "replays", "replays_prompts"]

Backend = Literal["torch", "triton"]

_TORCH = Ops(
    name="torch",
    linear=linear.linear_torch,
    norm_linear=linear.norm_linear_torch,
    norm_swiglu=linear.norm_swiglu_torch,
    add_linear=linear.add_linear_torch,
    rms_norm=norm.rms_norm_torch,
    silu_mul=activation.silu_mul_torch,
    attention_prepare=attention_prepare.attention_prepare_torch,
    paged_attention=attention.paged_attention_torch,
    gdn_decode=gdn.gdn_decode,
    gdn_prefill=gdn.gdn_prefill,
    norm_router=moe.norm_router_torch,
    moe=moe.moe_torch,
    sample=sampling.sample_torch,
    record=edits.record_torch,
)
# Products of a CPU's are written for its libraries.
_TORCH_ON_GPU = replace(
    _TORCH,
    linear=F.linear,
    norm_linear=partial(linear.norm_linear_torch, product=F.linear),
    norm_swiglu=partial(linear.norm_swiglu_torch, product=F.linear),
    add_linear=partial(linear.add_linear_torch, product=F.linear),
    norm_router=partial(moe.norm_router_torch, product=F.linear),
)
# What stays PyTorch's: products of many tokens (cuBLAS), the embedding, the shared expert's gate.
_TRITON = Ops(
    name="triton",
    linear=linear_skinny.linear,
    norm_linear=linear_skinny.norm_linear,
    norm_swiglu=linear_skinny.norm_swiglu,
    add_linear=linear_skinny.add_linear,
    rms_norm=norm.rms_norm,
    silu_mul=activation.silu_mul,
    attention_prepare=attention_prepare.attention_prepare,
    paged_attention=attention.paged_attention,
    gdn_decode=gdn_decode.gdn_decode,
    gdn_prefill=gdn_chunked.gdn_prefill,
    norm_router=moe_router.norm_router,
    moe=moe.moe,
    sample=draw.sample,
    record=edits.record,
)
_PREFILL: dict[Prefill, Callable[..., None]] = {
    "torch": gdn.gdn_prefill,
    "triton": _TRITON.gdn_prefill,
    "fla": gdn_external.gdn_prefill_fla,
    "flashinfer": gdn_external.gdn_prefill_flashinfer,
}


def replays(ops: Ops) -> bool:
    """Whether a captured step of answers can be replayed: its ops read contexts, pages and slots from tensors alone."""
    names = ("attention_prepare", "paged_attention", "gdn_decode")
    return all(getattr(ops, name) is not getattr(_TORCH, name) for name in names)


def replays_prompts(ops: Ops) -> bool:
    """Whether a captured prompt can be replayed too: kernels of other libraries may look at it on the host."""
    return replays(ops) and ops.gdn_prefill is _TRITON.gdn_prefill


def ops_for(backend: Backend, gdn_prefill: Prefill | None = None, *, on_gpu: bool = False) -> Ops:
    """The table of a backend, with another prefill of the Gated DeltaNet mixer where one is named.  Triton's runs on
    GPUs alone."""
    ops = {"torch": _TORCH_ON_GPU if on_gpu else _TORCH, "triton": _TRITON}[backend]
    return ops if gdn_prefill is None else replace(ops, gdn_prefill=_PREFILL[gdn_prefill])
