"""The mixture of experts on a GPU, from router logits to the residual, beside grouped products of PyTorch.

    python -m bench.moe [--out FILE.json]

Graphs over several layers' weights, at least 200 MB of which are touched before one comes back.  Beside ours: the same
in bfloat16 by torch._grouped_mm on pairs sorted by torch.  Floors: the weights of the experts that are chosen, once, at
the rate of a copy; the multiplications of the pairs at that of a large product.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from bench.device import copy_rate, facts, host_us, samples_us
from bench.floors import FLOPS_PER_S
from hotstart.kernels.activation import silu_mul
from hotstart.kernels.moe import moe, route_torch
from hotstart.kernels.ops import MoeDims
from hotstart.kernels.step import Step

HIDDEN = 2048
SHAPES = {
    "64 experts, 10 chosen": MoeDims(64, 10, 512, True, shares=True),
    "256 experts, 8 chosen": MoeDims(256, 8, 512, True, shares=True),
}
TOKENS = (1, 2, 4, 16, 64, 256, 1024, 8192)
LAYERS = 2


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).mul_(scale)


def grouped(residual: Tensor, x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, dims: MoeDims) -> Tensor:
    weights, chosen = route_torch(logits, dims)
    ids, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(ids, torch.arange(1, dims.stacked_experts + 1, device="cuda")).int()
    hidden = silu_mul(torch._grouped_mm(x[order // dims.experts_per_token], gate_up.transpose(1, 2), offs=ends))
    parts = torch._grouped_mm(hidden, down.transpose(1, 2), offs=ends)
    scaled = parts * weights.flatten()[order, None]
    y = torch.zeros(*x.shape, device="cuda").index_add_(0, order // dims.experts_per_token, scaled.float())
    return residual.add_(y)


def measured(name: str, dims: MoeDims, tokens: int, layers: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    step = cast(Step, SimpleNamespace(kv_index=torch.arange(tokens, device="cuda"), num_tokens=tokens))
    inputs = [(normal(tokens, HIDDEN), normal(tokens, dims.logit_width)) for _ in range(4 * LAYERS)]

    def calls(form: Callable[..., Tensor], *more: Any) -> list[Callable[[], Tensor]]:
        return [partial(form, *inputs[i], *layers[i % LAYERS], dims, *more) for i in range(len(inputs))]

    residual = normal(tokens, HIDDEN)

    used = sum(len(route_torch(logits, dims)[1].unique()) for _, logits in inputs) / len(inputs)
    return {
        "shape": name,
        "tokens": tokens,
        "experts_read": used,
        "samples_us": samples_us(calls(partial(moe, residual), step)),
        "host_us": host_us(calls(partial(moe, residual), step)[0]),
        "torch_samples_us": samples_us(calls(partial(grouped, residual))),
        "bytes": 2 * used * 3 * dims.width * HIDDEN,
        "flops": 2 * tokens * dims.experts_per_token * 3 * dims.width * HIDDEN,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    record = facts("python -m bench.moe") | {"copy_bytes_per_s": copy_rate(), "flops_per_s": FLOPS_PER_S, "rows": []}
    for name, dims in SHAPES.items():
        E, width = dims.stacked_experts, dims.width
        gate_up, down = (E, 2 * width, HIDDEN), (E, HIDDEN, width)
        layers = [(normal(*gate_up, scale=HIDDEN**-0.5), normal(*down, scale=width**-0.5)) for _ in range(LAYERS)]
        for tokens in TOKENS:
            row = measured(name, dims, tokens, layers)
            ours, theirs = median(row["samples_us"]), median(row["torch_samples_us"])
            print(f"{name}, {tokens} tokens: {ours} us, torch {theirs} us", flush=True)
            record["rows"].append(row)
            torch.cuda.empty_cache()
            if out is not None:
                out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
