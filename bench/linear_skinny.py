"""Products of few tokens with a layer's weights, with what stands around them, in microseconds.

    python -m bench.linear_skinny [--models qwen3.5-4b] [--rows 1 2] [--out FILE.json]

Beside ours stands the same by cuBLAS and kernels between, for every number of rows, whichever of them the engine takes.
A time is that of a replayed graph of many launches, divided by their number; at least 200 MB of weights are touched
before some come back.  The floor is the time in which a device copy moves as many bytes as the weights have, measured
in the same call.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from bench.device import MIN_TOUCHED, copy_rate, facts, samples_us
from bench.shapes import model_config
from hotstart.config.model import ModelConfig
from hotstart.kernels.activation import silu_mul
from hotstart.kernels.linear_skinny import is_streamed, stream
from hotstart.kernels.norm import rms_norm
from hotstart.layers.attention import attention_dims
from hotstart.layers.gated_delta_net import gdn_dims

EPS = 1e-6
LEAST_LAUNCHES = 24
MODELS = ("qwen3.5-0.8b", "qwen3.5-4b", "qwen3.5-9b", "qwen3.5-27b")
Form = Callable[[Tensor, Tensor, Tensor, Tensor], object]  # x [T, K], norm [K], weight [N, K], residual [T, N]

FORMS: dict[str, tuple[Form, Form]] = {  # ours, and of several launches
    "of norm": (
        lambda x, norm, weight, y: stream("store", x, weight, torch.empty_like(y), norm, EPS),
        lambda x, norm, weight, y: F.linear(rms_norm(x, norm, EPS), weight),
    ),
    "of norm, SwiGLU": (
        lambda x, norm, weight, y: stream("swiglu", x, weight, torch.empty_like(y), norm, EPS),
        lambda x, norm, weight, y: silu_mul(F.linear(rms_norm(x, norm, EPS), weight)),
    ),
    "added to": (
        lambda x, norm, weight, y: stream("add", x, weight, y),
        lambda x, norm, weight, y: y.addmm_(x, weight.T),
    ),
    "alone": (
        lambda x, norm, weight, y: stream("store", x, weight, torch.empty_like(y)),
        lambda x, norm, weight, y: F.linear(x, weight),
    ),
}


def products(config: ModelConfig) -> dict[str, tuple[str, int, int]]:
    """Form, rows of the weights, and their length, of every product of a dense model."""
    D, gdn, attention = config.hidden_size, gdn_dims(config), attention_dims(config)
    return {
        "in": ("of norm", gdn.packed_width, D),
        "out": ("added to", D, gdn.num_value_heads * gdn.value_dim),
        "qkv": ("of norm", attention.packed_width, D),
        "gate, up": ("of norm, SwiGLU", 2 * config.intermediate_size, D),
        "down": ("added to", D, config.intermediate_size),
        "head": ("alone", config.vocab_size, D),
    }


def empty(form: str, N: int, K: int, rows: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, norm, weight, y."""
    width = N // 2 if "SwiGLU" in form else N
    x, norm, weight, y = (
        torch.empty(*shape, device=device, dtype=torch.bfloat16) for shape in ((rows, K), (K,), (N, K), (rows, width))
    )
    return x, norm, weight, y


def compile_all(cases: list[tuple[str, int, int, int]]) -> None:
    """Side by side: a launch with tensors without data compiles and launches nothing."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for case in cases:
            FORMS[case[0]][0](*empty(*case, "meta"))


def bench(form: str, N: int, K: int, rows: int) -> dict[str, Any]:
    x, norm, first, y = (tensor.normal_(0, 0.02) for tensor in empty(form, N, K, rows, "cuda"))
    weights = [
        first,
        *(torch.empty_like(first).normal_(0, 0.02) for _ in range(max(1, int(MIN_TOUCHED / (2 * N * K))))),
    ]
    launches = weights * max(1, -(-LEAST_LAUNCHES // len(weights)))
    found = [samples_us([partial(call, x, norm, w, y) for w in launches]) for call in FORMS[form]]
    end = "swiglu" if "SwiGLU" in form else "add" if form == "added to" else "store"
    taken = is_streamed(end, x, y.shape[1], has_norm="norm" in form)
    facts = {"N": N, "K": K, "rows": rows, "bytes": 2 * N * K, "taken": "ours" if taken else "several"}
    return facts | {"samples_us": found[0], "several_samples_us": found[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 2, 4, 8, 16))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rate = copy_rate()
    record = facts("python -m bench.linear_skinny") | {"copy_bytes_per_s": rate, "rows": []}
    print(f"{record['gpu']}, torch {record['torch']}, triton {record['triton']}, copy {rate / 1e12:.2f} TB/s")
    wanted = [
        (rows, model, name, form, N, K)
        for rows in options.rows
        for model in options.models
        for name, (form, N, K) in products(model_config(model)).items()
    ]
    for rows in options.rows:
        compile_all([(form, N, K, rows) for count, _, _, form, N, K in wanted if count == rows])
    print("| rows | model | product | floor us | ours | several launches |\n|---|---|---|---|---|---|")
    for rows, model, name, form, N, K in wanted:
        row = {"model": model, "product": name, "form": form} | bench(form, N, K, rows)
        record["rows"].append(row)
        floor = row["bytes"] / rate * 1e6
        ours, several = (statistics.median(row[key]) for key in ("samples_us", "several_samples_us"))
        shares = f"{ours:.1f} ({floor / ours:.0%}) | {several:.1f} ({floor / several:.0%})"
        print(f"| {rows} | {model} | {name} | {floor:.1f} | {shares} |", flush=True)
        torch.cuda.empty_cache()
        if options.out:
            options.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
