"""Attention and sampling on a GPU, beside what PyTorch offers for the same, in microseconds.

    python -m bench.gpu_kernels [--only decode prefill sample] [--out FILE.json]

A time is the median of a kernel's runs, with the L2 cache emptied between them (triton.testing.do_bench).  Both sides
compile and tune nothing while they are timed.  Attention is replayed as a CUDA graph, so the host's time is not in it.

    decode     gated attention of one new token to a paged context; beside it torch's scaled_dot_product_attention on
               dense keys and values of equal lengths, ungated; the floor is the bytes of keys and values
    prefill    prompts, some behind tokens that are computed; beside it the same function, causal, ungated; the floor is
               the products or the bytes
    sample     a token for each row of logits; beside it our torch form
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.testing
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from bench.device import copy_rate
from bench.floors import FLOPS_PER_S
from hotstart.bench.record import commit
from hotstart.kernels.attention import paged_attention
from hotstart.kernels.draw import sample
from hotstart.kernels.ops import AttentionDims
from hotstart.kernels.sampling import SamplingRows, candidates, sample_torch
from hotstart.kernels.step import DecodeInputs, EndInputs, PrefillInputs, StepInputs

PAGE = 16
ATTENTION = AttentionDims(16, 4, 256, 64, 1e-6)  # Qwen3.5-4B and 9B
# Sequences, tokens of each in this step, tokens before them.
DECODES = [(1, 1, 1023), (1, 1, 32767), (16, 1, 4095), (64, 1, 1023), (256, 1, 1023)]
PREFILLS = [
    (1, 512, 0),
    (1, 1024, 0),
    (1, 2048, 0),
    (1, 8192, 0),
    (1, 8192, 24576),
    (8, 512, 0),
    (8, 1024, 0),
    (32, 64, 0),
]
VOCAB, ROWS = 248320, (1, 64, 128)
SETTINGS = {"greedy": (0.0, 0, 1.0), "plain": (1.0, 0, 1.0), "k 20, p 0.95": (0.6, 20, 0.95), "p 0.8": (1.0, 0, 0.8)}
Pair = tuple[str, Callable[[], object], Callable[[], object], float, float]  # what, ours, torch's, bytes, operations


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).mul_(scale)


def ints(values: Any, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(list(values), dtype=dtype, device="cuda")


def make_step(count: int, length: int, context: int) -> StepInputs:
    """`count` sequences that advance by `length` tokens to `context`, on pages in a random order."""
    pages = -(-context // PAGE)
    table = torch.randperm(count * pages, device="cuda").int().view(count, pages)
    host = {"reads": (0,) * count, "writes": (0,) * count, "contexts": (context,) * count}
    slots = {"read_slots": ints([0] * count), "write_slots": ints([0] * count)}
    sequences = {"num_sequences": count, "page_table": table, "context_lens": ints([context] * count), **host, **slots}
    empty = {
        "num_sequences": 0, "page_table": table[:0], "context_lens": table[:0, 0], "reads": (), "writes": (),
        "contexts": (), "read_slots": table[:0, 0], "write_slots": table[:0, 0],
    }  # fmt: skip
    decoding = length == 1
    decode = DecodeInputs(max_context=context, **(sequences if decoding else empty))
    first = count if decoding else 0
    prefill = PrefillInputs(
        first_token=first,
        lengths=() if decoding else (length,) * count,
        num_chunks=0,
        chunk_length=64,
        cu_seqlens=ints([first] if decoding else range(0, count * length + 1, length)),
        chunks=ints([]).view(0, 4),
        cu_chunks=ints([0]),
        **(empty if decoding else sequences),
    )
    tokens = count * length
    unused = torch.zeros(tokens, dtype=torch.int32, device="cuda")
    ends = EndInputs(0, unused[:0], unused[:0], unused[:0].long(), decode, prefill)
    return StepInputs(tokens, unused, unused, unused.long(), decode, prefill, ends, False, unused)


def attention(shapes: list[tuple[int, int, int]]) -> Iterator[Pair]:
    dims = ATTENTION
    H, Hkv, D = dims.num_heads, dims.num_kv_heads, dims.head_dim
    for count, length, before in shapes:
        context = before + length
        step = make_step(count, length, context)
        keys, values = (normal(step_pages(count, context), PAGE, Hkv, D) for _ in range(2))
        q, packed = normal(count * length, H, D), normal(count * length, dims.packed_width)
        dense_q = normal(count, H, length, D)
        dense_k, dense_v = (normal(count, Hkv, context, D) for _ in range(2))

        def ours(q=q, packed=packed, keys=keys, values=values, step=step) -> object:
            return paged_attention(q, packed, keys, values, step, dims)

        mask = (
            {"attn_mask": causal_lower_right(length, context)} if before and length > 1 else {"is_causal": length > 1}
        )

        def theirs(q=dense_q, k=dense_k, v=dense_v, mask=mask) -> object:
            with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
                return F.scaled_dot_product_attention(q, k, v, **mask, enable_gqa=True)

        what = f"{count}x{context}" if length == 1 or not before else f"{count}x{length} after {before}"
        operations = 4.0 * count * H * D * (length * before + length * length / 2)
        yield what, ours, theirs, 2.0 * count * context * Hkv * D * 2, operations


def step_pages(count: int, context: int) -> int:
    return count * -(-context // PAGE)


def sampling() -> Iterator[Pair]:
    history = ints([0] * 4, torch.int32).view(1, 4)
    for count in ROWS:
        logits = normal(count, VOCAB, scale=3.0)
        for name, (temperature, top_k, top_p) in SETTINGS.items():
            rows = SamplingRows(
                temperature=torch.full((count,), temperature, device="cuda"),
                top_k=ints([top_k] * count, torch.int64),
                top_p=torch.full((count,), top_p, device="cuda"),
                seed=ints(range(count), torch.int64),
                position=ints(range(count), torch.int64),
                min_p=torch.zeros(count, device="cuda"),
                all_greedy=temperature == 0,
                candidates=candidates(top_k, top_p) if temperature else 0,
                any_min_p=False,
                grammar=None,
                edits=None,
            )

            def ours(logits=logits, rows=rows) -> object:
                return sample(logits, rows, history)

            def theirs(logits=logits, rows=rows) -> object:
                return sample_torch(logits, rows, history)

            yield f"{count} rows, {name}", ours, theirs, 2.0 * count * VOCAB, 0.0


PARTS: dict[str, Callable[[], Iterator[Pair]]] = {
    "decode": lambda: attention(DECODES),
    "prefill": lambda: attention(PREFILLS),
    "sample": sampling,
}


def microseconds(call: Callable[[], object], *, replayed: bool) -> float:
    if replayed:
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        call = graph.replay
    return float(triton.testing.do_bench(call, warmup=10, rep=50, return_mode="median")) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rate = copy_rate()
    rows = []
    print("| part | what | us | torch us | floor us |\n|---|---|---|---|---|")
    for part in options.only:
        for what, ours, theirs, num_bytes, operations in PARTS[part]():
            us, torch_us = (microseconds(call, replayed=part in ("decode", "prefill")) for call in (ours, theirs))
            row = {"part": part, "what": what, "us": us, "torch_us": torch_us}
            rows.append(row | {"floor_us": 1e6 * max(num_bytes / rate, operations / FLOPS_PER_S)})
            print("| {part} | {what} | {us:.1f} | {torch_us:.1f} | {floor_us:.1f} |".format(**rows[-1]), flush=True)
            torch.cuda.empty_cache()
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": triton.__version__,
        "command": f"python -m bench.gpu_kernels --only {' '.join(options.only)}",
        "commit": commit(),
        "attention": dataclasses.asdict(ATTENTION),
        "copy_bytes_per_s": rate,
    }
    if options.out:
        options.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
