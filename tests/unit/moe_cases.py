"""Inputs of the mixture of experts with two rows of padding, which hold NaN, and what must come out, in float64."""

import torch
from steps import Row, make_step

from hotstart.kernels.moe import moe_reference
from hotstart.kernels.moe_route import choosing, routing
from hotstart.kernels.ops import MoeDims
from hotstart.kernels.series import Series

__all__ = ["CASES", "choose", "equals", "make_case", "route"]

CASES = [
    MoeDims(5, 2, 16, True, shares=True),
    MoeDims(16, 3, 24, False),
    MoeDims(3, 3, 16, True),
    MoeDims(7, 1, 40, False, shares=True),
]


def make_case(dims, num_tokens, dtype=torch.float32, hidden=24, favourite=None, seed=0):
    """(residual, x, logits, gate_up, down, dims, step), [num_tokens, hidden]; every token wants its favourite most.

    The residual is for `moe` to change: each case has its own, of zeros where there are tokens, else of sevens.
    """
    r = torch.Generator().manual_seed(seed)
    E, experts, width = dims.num_experts, dims.stacked_experts, dims.width
    pages = tuple(range(-(-num_tokens // 16)))
    step = make_step([], [Row(num_tokens, pages=pages)], page_size=16, padding=2)
    x = torch.randn(num_tokens + 2, hidden, generator=r).to(dtype)
    # Distinct in every dtype: which of two equal experts is chosen would make outputs differ, and has its own test.
    ranks = torch.rand(num_tokens + 2, E, generator=r).argsort(-1)
    logits = torch.full((num_tokens + 2, dims.logit_width), float("nan"), dtype=dtype)
    logits[:, :E] = ranks / E * 4 * (1 + torch.rand(num_tokens + 2, 1, generator=r))
    if dims.shares:
        logits[:, E] = torch.randn(num_tokens + 2, generator=r)
    if favourite is not None:
        logits[:, favourite] = 9.0
    x[num_tokens:] = logits[num_tokens:] = float("nan")
    gate_up = (torch.randn(experts, 2 * width, hidden, generator=r) * hidden**-0.5).to(dtype)
    down = (torch.randn(experts, hidden, width, generator=r) * width**-0.5).to(dtype)
    wide = [t.double() for t in (x[:num_tokens], logits[:num_tokens], gate_up, down)]
    residual = torch.zeros_like(x)
    residual[num_tokens:] = 7
    return (residual, x, logits, gate_up, down, dims, step), moe_reference(*wide, dims)


def equals(dims, num_tokens, dtype=torch.float32):
    """Logits of three values, kv_index, and the chosen experts: among equals the lower id comes first."""
    logits = torch.randint(3, (num_tokens, dims.logit_width), generator=torch.Generator().manual_seed(0)).to(dtype)
    order = logits[:, : dims.num_experts].sort(dim=-1, descending=True, stable=True)
    return logits, torch.arange(num_tokens), order.indices[:, : dims.top_k].sort(-1).values


def choose(logits, kv_index, dims):
    """What `choosing` leaves, by name."""
    return launched(choosing(len(logits), dims, block=1), logits, kv_index)


def route(logits, kv_index, dims, rows):
    """Weights [T, experts_per_token], pairs [P], tiles [*, 4]: what `routing` leaves for the products."""
    left = launched(routing(len(logits), dims, rows), logits, kv_index)
    return left["weights"].view(len(logits), -1), left["pairs"], left["tiles"].view(-1, 4)


def launched(part, logits, kv_index):
    calls, own = part
    left = {name: torch.empty(one.elements, dtype=one.dtype, device=logits.device) for name, one in own.items()}
    Series(" ".join(["logits kv_index", *left]), calls, {})(logits, kv_index, *left.values())
    return left
