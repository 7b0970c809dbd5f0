"""One-step Gated DeltaNet on a GPU: conv, gates, l2norm, rule and gated norm, in microseconds a step.

    python -m bench.gdn_decode [--heads 16 32] [--sequences 1 8 64 256] [--state float32]

Time of a graph replay.  Each replay works on other slots, and at least 200 MB are touched before one comes back, so
that nothing is found in the L2 cache.  The floor is the traffic of the state, read and written once, at the rate of a
device copy measured in the same call.  Host time is that of an eager call, with the device idle behind it.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor

from hotstart.cache.step import DecodeInputs
from hotstart.kernels.gdn_decode import gdn_decode
from hotstart.kernels.ops import GdnDims, GdnWeights

MIN_TOUCHED = 200e6


def copy_rate() -> float:
    """Bytes read and written per second by a device copy of 2 GiB."""
    source, target = (torch.empty(2**31, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * 2**31 / median_seconds(lambda: target.copy_(source), 20)


def median_seconds(call, repeats: int) -> float:
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def decode_inputs(slots: Tensor) -> DecodeInputs:
    n = slots.shape[0]
    return DecodeInputs(
        num_sequences=n,
        max_context=1,
        contexts=(1,) * n,
        reads=(0,) * n,
        writes=(0,) * n,
        page_table=slots.view(-1, 1),
        context_lens=slots,
        read_slots=slots,
        write_slots=slots,
    )


def bench(dims: GdnDims, sequences: int, state_dtype: torch.dtype, rate: float) -> str:
    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype)

    HV, K, V = dims.num_value_heads, dims.key_dim, dims.value_dim
    weights = GdnWeights(
        normal(dims.conv_channels, dims.conv_width), torch.rand(HV, device="cuda"), torch.rand(HV, device="cuda") - 4,
        torch.ones(V, device="cuda"),
    )  # fmt: skip
    state_bytes = HV * K * V * state_dtype.itemsize
    rounds = max(4, int(MIN_TOUCHED / (2 * state_bytes * sequences)) + 1)
    num_slots = rounds * sequences
    state = normal(num_slots, HV, V, K, dtype=state_dtype) * 0.1
    conv = normal(num_slots, dims.conv_width - 1, dims.conv_channels)
    packed = normal(sequences, dims.packed_width)
    out = torch.empty(sequences, HV * V, dtype=torch.bfloat16, device="cuda")
    order = torch.randperm(num_slots, device="cuda", dtype=torch.int32).view(rounds, sequences)
    steps = [decode_inputs(row.clone()) for row in order]

    def once(step: DecodeInputs) -> None:
        gdn_decode(packed, weights, conv, state, step, dims, out)

    once(steps[0])
    torch.cuda.synchronize()
    # One graph of all rounds: the time of a launch within a graph is part of what a step pays.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            once(step)
    gpu_us = median_seconds(graph.replay, 30) / rounds * 1e6
    started = time.perf_counter()
    for i in range(300):
        once(steps[i % rounds])
        if i % 50 == 49:
            torch.cuda.synchronize()
    host_us = (time.perf_counter() - started) / 300 * 1e6
    floor_us = 2 * state_bytes * sequences / rate * 1e6
    heads = f"{dims.num_key_heads}/{HV}"
    return f"| {heads} | {sequences} | {gpu_us:.1f} | {floor_us:.1f} | {floor_us / gpu_us:.0%} | {host_us:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, nargs=2, default=(16, 32))
    parser.add_argument("--sequences", type=int, nargs="+", default=(1, 8, 64, 256))
    parser.add_argument("--state", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    dims = replace(GdnDims(16, 32, 128, 128, 4, 1e-6), num_key_heads=options.heads[0], num_value_heads=options.heads[1])
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {rate / 1e12:.2f} TB/s, {options.state}")
    print("| Hk/HV | sequences | GPU us | floor us | of the floor | host us |\n|---|---|---|---|---|---|")
    for sequences in options.sequences:
        print(bench(dims, sequences, getattr(torch, options.state), rate), flush=True)


if __name__ == "__main__":
    main()
