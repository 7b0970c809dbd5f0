"""One token of the Gated DeltaNet mixer on a GPU, conv to gated norm, in microseconds a step.

    python -m bench.gdn_decode [--heads 16 32] [--sequences 1 8 64 256] [--state float32] [--out FILE.json]

A time is that of a replayed graph of several steps, divided by their number.  Each step works on other slots, and at
least 200 MB are touched before one comes back, so that nothing is found in the L2 cache.  The floor is the traffic of
the state, read and written once, at the rate of a device copy measured in the same call.  Host time is that of an
eager call that finds the device idle.

In those graphs a step follows another step, whose end it may overlap.  In a model it stands between two matrix
products: that time is what steps add to a graph of such products.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.device import MIN_TOUCHED, copy_rate, facts, host_us, samples_us
from hotstart.kernels.gdn_decode import gdn_decode
from hotstart.kernels.ops import GdnDims, GdnWeights
from hotstart.kernels.step import DecodeInputs


def decode_inputs(slots: Tensor, context_lens: Tensor) -> DecodeInputs:
    n = slots.shape[0]
    return DecodeInputs(
        num_sequences=n,
        max_context=1,
        contexts=(1,) * n,
        reads=(0,) * n,
        writes=(0,) * n,
        page_table=slots.view(-1, 1),
        context_lens=context_lens,
        read_slots=slots,
        write_slots=slots,
    )


HIDDEN = 2560  # of Qwen3.5-4B


def between_us(calls: Sequence[Callable[[], object]], packed: Tensor) -> float:
    """Microseconds that each call adds to a graph in which products write the packed rows before it and after it."""
    weight = torch.randn(packed.shape[1], HIDDEN, device="cuda", dtype=packed.dtype) * HIDDEN**-0.5
    x = torch.randn(packed.shape[0], HIDDEN, device="cuda", dtype=packed.dtype)

    def product() -> object:
        return torch.mm(x, weight.t(), out=packed)

    def both(call: Callable[[], object]) -> None:
        product()
        call()

    alone = samples_us([product] * len(calls))
    together = samples_us([lambda call=call: both(call) for call in calls])
    return round(statistics.median(together) - statistics.median(alone), 2)


def bench(dims: GdnDims, sequences: int, state_dtype: torch.dtype) -> dict[str, Any]:
    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype)

    HV, K, V = dims.num_value_heads, dims.key_dim, dims.value_dim
    weights = GdnWeights(
        normal(dims.conv_channels, dims.conv_width), torch.rand(HV, device="cuda"), torch.rand(HV, device="cuda") - 4,
        torch.ones(V, device="cuda"),
    )  # fmt: skip
    state_bytes = 2 * sequences * HV * K * V * state_dtype.itemsize
    rounds = max(4, int(MIN_TOUCHED / state_bytes) + 1)
    num_slots = rounds * sequences
    state = normal(num_slots, HV, V, K, dtype=state_dtype) * 0.1
    conv = normal(num_slots, dims.conv_width, dims.conv_channels)
    out = torch.empty(sequences, HV * V, dtype=torch.bfloat16, device="cuda")
    packed = normal(sequences, dims.packed_width)
    order = torch.randperm(num_slots, device="cuda", dtype=torch.int32).view(rounds, sequences)
    contexts = torch.randint(4, 1000, (rounds, sequences), device="cuda", dtype=torch.int32)
    steps = [decode_inputs(*(rows[i].clone() for rows in (order, contexts))) for i in range(rounds)]
    calls = [lambda step=step: gdn_decode(packed, weights, conv, state, step, dims, out) for step in steps]
    return {
        "sequences": sequences, "calls": rounds, "bytes": state_bytes, "samples_us": samples_us(calls),
        "between_us": between_us(calls[:24], packed), "host_us": host_us(calls[0]),
    }  # fmt: skip


def line(row: dict[str, Any], rate: float) -> str:
    us, floor = statistics.median(row["samples_us"]), row["bytes"] / rate * 1e6
    rest = f"{row['between_us']:.1f} | {row['host_us']:.1f} |"
    return f"| {row['sequences']} | {us:.1f} | {floor:.1f} | {floor / us:.0%} | {rest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs=2, default=(16, 32))
    parser.add_argument("--sequences", type=int, nargs="+", default=(1, 8, 64, 256))
    parser.add_argument("--state", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    dims = GdnDims(*options.heads, 128, 128, conv_width=4, eps=1e-6)
    rate = copy_rate()
    heads = " ".join(map(str, options.heads))
    record = facts(f"python -m bench.gdn_decode --heads {heads} --state {options.state}")
    record |= {"copy_bytes_per_s": rate, "heads": list(options.heads), "state": options.state, "rows": []}
    print(f"{record['gpu']}, torch {record['torch']}, triton {record['triton']}, copy {rate / 1e12:.2f} TB/s")
    print("| sequences | GPU us | floor us | of the floor | between products | host us |\n|---|---|---|---|---|---|")
    for sequences in options.sequences:
        record["rows"].append(bench(dims, sequences, getattr(torch, options.state)))
        print(line(record["rows"][-1], rate), flush=True)
        torch.cuda.empty_cache()
    if options.out:
        options.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
