"""Mixture of experts: y = sum_j p_j down_j(silu(gate_j x) * up_j x) over the k likeliest of p = softmax(router logits).

Source: Fedus et al. 2021, arXiv:2101.03961; routing as in Qwen3-MoE.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hotstart.kernels.activation import silu_mul

__all__ = ["moe", "moe_reference", "route"]

# torch's grouped product runs in float32 on the CPU, but on meta tensors it insists on bfloat16.
_library = torch.library.Library("hotstart", "FRAGMENT")
_library.define("grouped_mm(Tensor x, Tensor weight, Tensor ends) -> Tensor")


def _grouped_mm_real(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return torch._grouped_mm(x, weight.transpose(1, 2), offs=ends)


def _grouped_mm_meta(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


_library.impl("grouped_mm", _grouped_mm_real, "CompositeExplicitAutograd")
_library.impl("grouped_mm", _grouped_mm_meta, "Meta")
_grouped_mm = torch.ops.hotstart.grouped_mm  # (x [P, D], weight [E, N, D], ends [E] int32) -> [P, N]


def route(router_logits: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Weights [T, k] float32 and expert ids [T, k] of each token.  router_logits: [T, E]."""
    weights, experts = torch.topk(router_logits.softmax(-1, dtype=torch.float32), top_k, dim=-1)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts


def moe_reference(
    x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int, renormalise: bool
) -> Tensor:
    """Token by token, expert by expert.  x: [T, D] -> [T, D]."""
    weights, experts = route(router_logits, top_k, renormalise)
    rows = []
    for token, scale, chosen in zip(x, weights.to(x.dtype), experts, strict=True):
        parts = [F.linear(silu_mul(F.linear(token[None], gate_up[e])), down[e])[0] for e in chosen]
        rows.append(sum((w * y for w, y in zip(scale, parts, strict=True)), torch.zeros_like(token)))
    return torch.stack(rows)


def moe(
    x: Tensor,
    router_logits: Tensor,
    gate_up: Tensor,
    down: Tensor,
    top_k: int,
    renormalise: bool,
    num_tokens: int,
) -> Tensor:
    """x: [T, D]; router_logits: [T, E]; gate_up: [E, 2 I, D]; down: [E, D, I] -> [T, D], rows of padding zero."""
    T, E = router_logits.shape
    weights, experts = route(router_logits[:num_tokens], top_k, renormalise)
    ids, order = experts.flatten().sort(stable=True)  # pairs (token, choice) in the order of experts
    tokens = order // top_k
    ends = torch.searchsorted(ids, torch.arange(1, E + 1, device=x.device)).int()  # pairs before each next expert
    hidden = silu_mul(_grouped_mm(x.index_select(0, tokens), gate_up, ends))
    parts = _grouped_mm(hidden, down, ends)
    parts = parts * weights.flatten().index_select(0, order).to(parts.dtype)[:, None]
    out = torch.zeros(T, x.shape[1], dtype=torch.float32, device=x.device)
    return out.index_add_(0, tokens, parts.float()).to(x.dtype)
