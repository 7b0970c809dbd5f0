"""Mixture of experts: y = sum_j p_j down_j(silu(gate_j x) * up_j x) over the k likeliest of p = softmax(router logits).

An expert that every token shares is one more of them, and its weight the sigmoid of a logit of its own.

What comes out is added to the residual that x is the norm of.

On a GPU: route and sort the pairs (token, expert) (moe_route.py), two products over tiles of pairs, and a sum for each
token (moe_gemm.py); for a few tokens without sorting (moe_few.py).  Nothing is read on the host, and no shape but that
of the tokens decides how much is launched.

Source: Fedus et al. 2021, arXiv:2101.03961; routing as in Qwen3-MoE.
"""

from functools import lru_cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from hotstart.kernels.activation import silu_mul_torch
from hotstart.kernels.linear import Product, linear_torch
from hotstart.kernels.moe_few import MOST_TOKENS, products_of_few
from hotstart.kernels.moe_gemm import products
from hotstart.kernels.moe_route import SPREAD_TOKENS, choosing, routing
from hotstart.kernels.moe_tiles import Tiles, all_tiles, tiles_for
from hotstart.kernels.norm import rms_norm_torch
from hotstart.kernels.ops import MoeDims
from hotstart.kernels.series import Series
from hotstart.kernels.space import LaunchSpace
from hotstart.kernels.step import Step
from hotstart.kernels.target import Target, current_target

__all__ = ["moe", "moe_reference", "moe_torch", "norm_router_torch", "route_torch", "warmup"]


def route_torch(logits: Tensor, dims: MoeDims) -> tuple[Tensor, Tensor]:
    """Weights, float32, and ids of each token's experts, [T, experts_per_token].  logits: [T, logit_width]."""
    E = dims.num_experts
    weights, experts = torch.topk(logits[:, :E].softmax(-1, dtype=torch.float32), dims.top_k, dim=-1)
    if dims.renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    if not dims.shares:
        return weights, experts
    gate = logits[:, E : E + 1].float().sigmoid()
    return torch.cat([weights, gate], 1), F.pad(experts, (0, 1), value=E)


def moe_reference(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, dims: MoeDims) -> Tensor:
    """Token by token, expert by expert.  x: [T, D] -> [T, D]."""
    weights, experts = route_torch(logits, dims)
    rows = []
    for token, scale, chosen in zip(x, weights.to(x.dtype), experts, strict=True):
        parts = [F.linear(silu_mul_torch(F.linear(token[None], gate_up[e])), down[e])[0] for e in chosen]
        rows.append(sum((w * y for w, y in zip(scale, parts, strict=True)), torch.zeros_like(token)))
    return torch.stack(rows)


def norm_router_torch(
    residual: Tensor, norm: Tensor, eps: float, router: Tensor, product: Product = linear_torch
) -> tuple[Tensor, Tensor]:
    """See `norm_router` (moe_router.py)."""
    x = rms_norm_torch(residual, norm, eps)
    return x, product(x, router)


def moe_torch(
    residual: Tensor, x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, dims: MoeDims, step: Step
) -> Tensor:
    """See `moe`."""
    count, D, num_tokens = dims.experts_per_token, x.shape[1], step.num_tokens
    weights, experts = route_torch(logits[:num_tokens], dims)
    ids, order = experts.flatten().sort(stable=True)  # pairs (token, expert) in the order of experts
    parts = _experts(x.index_select(0, order // count), ids, gate_up, down)
    parts = torch.empty_like(parts).index_copy_(0, order, parts).view(num_tokens, count, D)
    residual[:num_tokens] += torch.bmm(weights.unsqueeze(1), parts.float()).squeeze(1)
    return residual


# How many rows an expert gets is data, so the products are an operator of their own: what it does for each expert
# stays inside, and outside there are only shapes, on meta tensors too.
_library = torch.library.Library("hotstart", "FRAGMENT")
_library.define("experts(Tensor x, Tensor ids, Tensor gate_up, Tensor down) -> Tensor")
_experts = torch.ops.hotstart.experts  # (x [P, D] in the order of ids [P], ids, gate_up, down) -> [P, D]


def _experts_cpu(x: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    if x.shape[0] >= gate_up.shape[0]:
        return _experts_grouped(x, ids, gate_up, down)
    # Fewer rows than experts: only those that have rows, where torch's grouped product visits all.
    y, stop = torch.empty_like(x), 0
    for expert, rows in groupby(ids.tolist()):
        start, stop = stop, stop + len(list(rows))
        hidden = silu_mul_torch(F.linear(x[start:stop], gate_up[expert]))
        torch.mm(hidden, down[expert].T, out=y[start:stop])
    return y


def _experts_grouped(x: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    ends = torch.searchsorted(ids, torch.arange(1, gate_up.shape[0] + 1, device=x.device)).int()
    hidden = silu_mul_torch(torch._grouped_mm(x, gate_up.transpose(1, 2), offs=ends))
    return torch._grouped_mm(hidden, down.transpose(1, 2), offs=ends)


def _experts_meta(x: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return torch.empty_like(x)


_library.impl("experts", _experts_cpu, "CPU")
_library.impl("experts", _experts_grouped, "CUDA")
_library.impl("experts", _experts_meta, "Meta")


def moe(
    residual: Tensor, x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, dims: MoeDims, step: Step
) -> Tensor:
    """Adds the experts of x to the residual, but for rows of padding.  residual, x: [T, D]; logits: [T, logit_width].

    gate_up: [experts, 2 I, D]; down: [experts, D, I]; `experts` counts the shared one too, where there is one.
    """
    (T, D), experts, width = x.shape, dims.stacked_experts, dims.width
    assert gate_up.shape == (experts, 2 * width, D) and down.shape == (experts, D, width), (gate_up.shape, dims)
    assert logits.shape == (T, dims.logit_width) and residual.shape == (T, D), (logits.shape, residual.shape, dims)
    cut = None if T <= MOST_TOKENS else tiles_for(T, dims, x.dtype)
    series = _series(T, D, dims, x.dtype, cut, current_target())
    series(residual, x, logits, gate_up, down, step.kv_index)
    return residual


# What the layers of a step share, for as many sizes of steps as there are.
@lru_cache(maxsize=256)
def _series(T: int, D: int, dims: MoeDims, dtype: torch.dtype, cut: Tiles | None, target: Target) -> Series:
    """`cut`: None for few tokens, which are not sorted.  `target`: whose memory decides about blocks of tokens."""
    if cut is None:
        (first, chosen), (rest, worked) = choosing(T, dims, block=1), products_of_few(T, D, dims, dtype)
    else:
        (first, chosen), (rest, worked) = routing(T, dims, cut.rows), products(T, D, dims, dtype, cut)
    return Series("residual x logits gate_up down kv_index", [*first, *rest], chosen | worked)


def warmup(space: LaunchSpace) -> None:
    """Of padding alone, so the weights of one expert are enough, where all of them may be most of the memory."""
    dims, D = space.moe, space.hidden_size
    if dims is None:
        return
    for dtype in space.activation_dtypes:
        gate_up, down = space.empty(1, 2 * dims.width, D, dtype=dtype), space.empty(1, D, dims.width, dtype=dtype)
        for T, cut in [(MOST_TOKENS, None), *_kinds(dims, dtype)]:
            x, logits = space.empty(T, D, dtype=dtype), space.empty(T, dims.logit_width, dtype=dtype)
            kv_index = torch.full((T,), -1, dtype=torch.int64, device=space.device)
            _series(T, D, dims, dtype, cut, current_target())(x, x, logits, gate_up, down, kv_index)


def _kinds(dims: MoeDims, dtype: torch.dtype) -> list[tuple[int, Tiles]]:
    """Steps of small blocks of tokens and of large ones, where tiles are for so many."""
    found, above = [], 0.0
    for tiles in all_tiles(dtype):
        most = tiles.up_to * dims.num_experts / dims.top_k  # tokens
        found += [(2, tiles)] * (above < SPREAD_TOKENS) + [(SPREAD_TOKENS + 1, tiles)] * (most > SPREAD_TOKENS)
        above = most
    return found
