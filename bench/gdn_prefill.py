"""Prefill of Gated DeltaNet on a GPU: the rule alone beside libraries that are installed, and the whole mixer.

    python -m bench.gdn_prefill [--heads 16 32] [--out FILE.json] [--peers fla flashinfer]
    python -m bench.gdn_prefill --mixers fla flashinfer [--out FILE.json]     # the mixer alone, through each, too
    python -m bench.gdn_prefill --chunk-lengths 16 32 64 [--out FILE.json]    # the mixer on short prompts

A time is that of a replayed graph of several calls, divided by their number.  Each call works on inputs, outputs and
slots of its own, and at least 200 MB are touched before one comes back, so that nothing is found in the L2 cache.  The
rule's states are float32, and read and written by slot; a library's come from and go to tensors of its own.
flash-linear-attention norms q and k itself, as we do; FlashInfer is given unit vectors, and decays in place of their
logarithms.  Host time is that of an eager call with the device idle behind it.  The mixer's floor is the bytes that it
must read and write once, at the rate of a device copy measured in the same call.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.device import MIN_TOUCHED, copy_rate, facts, host_us, samples_us
from hotstart.engine.sizes import GpuSizes
from hotstart.kernels.backends import ops_for
from hotstart.kernels.gdn_chunked import gated_delta_rule_chunked, gdn_prefill
from hotstart.kernels.ops import GdnDims, GdnWeights, Prefill
from hotstart.kernels.step import PrefillInputs

SHAPES = [(1, 64), (1, 512), (1, 2048), (1, 8192), (1, 32768), (32, 256), (8, 1024), (64, 16)]
SHORT = [(1, 1), (1, 16), (1, 32), (1, 64), (1, 128), (8, 16), (64, 16), (64, 64)]
BFLOAT16 = torch.bfloat16


def normal(*shape: int, dtype: torch.dtype = BFLOAT16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def prompts(count: int, length: int, chunk_length: int, first_slot: int) -> PrefillInputs:
    """`count` prompts of one length, in slots of their own."""
    chunks = -(-length // chunk_length)
    rows = [
        (i, i * length + c * chunk_length, min(chunk_length, length - c * chunk_length), c)
        for i in range(count)
        for c in range(chunks)
    ]

    def ints(values: Any) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device="cuda")

    slots = tuple(range(first_slot, first_slot + count))
    return PrefillInputs(
        num_sequences=count,
        first_token=0,
        lengths=(length,) * count,
        contexts=(length,) * count,
        reads=slots,
        writes=slots,
        num_chunks=len(rows),
        chunk_length=chunk_length,
        cu_seqlens=ints(range(0, count * length + 1, length)),
        context_lens=ints([length] * count),
        page_table=ints([0] * count).view(-1, 1),
        read_slots=ints(slots),
        write_slots=ints(slots),
        chunks=ints(rows).view(-1, 4),
        cu_chunks=ints(range(0, count * chunks + 1, chunks)),
    )


def peak_bytes(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def rounds(bytes_of_a_call: int) -> int:
    return max(2, min(40, int(MIN_TOUCHED / bytes_of_a_call) + 1))


Call = Callable[[], object]
# Of q, k, v, g, beta, a state [N, HV, 128, 128] and where sequences end: a call of a library.
Peer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Call]


def fla() -> tuple[Peer, str]:
    import fla
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule as rule

    def call(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ends: Tensor) -> Call:
        return lambda: rule(
            q[None], k[None], v[None], g=g[None], beta=beta[None], initial_state=state, output_final_state=True,
            cu_seqlens=ends, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip

    return call, str(fla.__version__)


def flashinfer() -> tuple[Peer, str]:
    import flashinfer
    from flashinfer.gdn_prefill import chunk_gated_delta_rule as rule

    def call(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ends: Tensor) -> Call:
        q, k = (torch.nn.functional.normalize(x.float(), dim=-1).to(x.dtype) for x in (q, k))
        decay, out, after = g.exp(), torch.empty_like(v), torch.empty_like(state)
        return lambda: rule(
            q, k, v, g=decay, beta=beta, initial_state=state, output_final_state=True, cu_seqlens=ends, output=out,
            output_state=after,
        )  # fmt: skip

    return call, str(flashinfer.__version__)


PEERS: dict[str, Callable[[], tuple[Peer, str]]] = {"fla": fla, "flashinfer": flashinfer}


def measured(calls: list[Call]) -> dict[str, Any]:
    before = torch.cuda.memory_allocated()
    calls[0]()  # compiles and tunes, and may keep memory for later calls
    kept = torch.cuda.memory_allocated() - before
    return {"samples_us": samples_us(calls), "host_us": host_us(calls[0]), "peak_bytes": kept + peak_bytes(calls[0])}


def bench_rule(dims: GdnDims, count: int, length: int, peers: dict[str, Peer]) -> dict[str, Any]:
    H, HV, K, V, T = dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim, count * length
    n = rounds((2 * H * K + 2 * HV * V) * 2 * T + 2 * count * HV * K * V * 4)
    chunk_length = GpuSizes.chunk_length
    pool = torch.zeros(n * count, HV, V, K, device="cuda")
    A = torch.linspace(0.01, 16, HV, device="cuda")
    # One tensor for all calls: a library reads each new one on the host, which a graph cannot hold.
    ends = torch.arange(0, T + 1, length, device="cuda")
    ours: list[Call] = []
    theirs: dict[str, list[Call]] = {name: [] for name in peers}
    for i in range(n):
        q, k, v = normal(T, H, K), normal(T, H, K), normal(T, HV, V)
        # Decays as the models have them: slow heads and fast ones.
        g = -A * torch.nn.functional.softplus(normal(T, HV, dtype=torch.float32) - torch.linspace(6, 0, HV).cuda())
        beta, out = torch.sigmoid(normal(T, HV, dtype=torch.float32)), torch.empty_like(v)
        step = prompts(count, length, chunk_length, i * count)
        ours.append(lambda a=(q, k, v, g, beta, pool, step, out): gated_delta_rule_chunked(*a))
        for name, peer in peers.items():
            state = torch.zeros(count, HV, K, V, device="cuda")
            theirs[name].append(peer(q, k, v, g, beta, state, ends))
    row = {"scope": "rule", "sequences": count, "tokens": length, "calls": n, **measured(ours)}
    return row | {"peers": {name: measured(calls) for name, calls in theirs.items()}}


def bench_mixer(
    dims: GdnDims, count: int, length: int, chunk_length: int, mixers: Sequence[Prefill] = ()
) -> dict[str, Any]:
    HV, K, V, T = dims.num_value_heads, dims.key_dim, dims.value_dim, count * length
    bytes_of_a_call = (dims.packed_width + HV * V) * 2 * T + 2 * count * HV * K * V * 4
    n = rounds(bytes_of_a_call)
    weights = GdnWeights(
        normal(dims.conv_channels, dims.conv_width), torch.linspace(0.01, 16, HV, device="cuda").log(),
        torch.linspace(-6, 0, HV, device="cuda"), torch.ones(V, device="cuda"),
    )  # fmt: skip
    state = torch.zeros(n * count, HV, V, K, device="cuda")
    conv = torch.zeros(n * count, dims.conv_width, dims.conv_channels, device="cuda", dtype=BFLOAT16)
    each = []
    for i in range(n):
        packed, out = normal(T, dims.packed_width), normal(T, HV * V)
        step = prompts(count, length, chunk_length, i * count)
        each.append((packed, weights, conv, state, step, dims, out))

    def calls(op: Callable[..., None]) -> list[Call]:
        return [partial(op, *arguments) for arguments in each]

    ours = calls(gdn_prefill)
    row = {
        "scope": "mixer", "sequences": count, "tokens": length, "chunk_length": chunk_length, "calls": n,
        "bytes": bytes_of_a_call,
        "samples_us": samples_us(ours), "host_us": host_us(ours[0]), "peak_bytes": peak_bytes(ours[0]),
    }  # fmt: skip
    with torch.inference_mode():
        theirs = {name: measured(calls(ops_for("triton", name).gdn_prefill)) for name in mixers}
    return row | ({"peers": theirs} if theirs else {})


def line(row: dict[str, Any], chunk_length: int, rate: float) -> str:
    ours = statistics.median(row["samples_us"])
    cells = [row["scope"], f"{row['sequences']} x {row['tokens']}", str(chunk_length), f"{ours:.1f}"]
    cells += [f"{row['host_us']:.0f}", f"{row['peak_bytes'] / 2**20:.0f}"]
    for name, peer in row.get("peers", {}).items():
        theirs = statistics.median(peer["samples_us"])
        cells.append(f"{name} {theirs:.1f}, {theirs / ours:.2f} x, {peer['host_us']:.0f}, {peer['peak_bytes'] >> 20}")
    if "bytes" in row:
        cells.append(f"floor {row['bytes'] / rate * 1e6:.0f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs=2, default=(16, 32))
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), default=())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mixers", nargs="*", choices=tuple(PEERS), default=())
    parser.add_argument("--chunk-lengths", type=int, nargs="+")
    options = parser.parse_args()
    found = {name: PEERS[name]() for name in (*options.peers, *options.mixers)}
    peers, versions = {name: found[name][0] for name in options.peers}, {name: pair[1] for name, pair in found.items()}
    dims = GdnDims(*options.heads, 128, 128, conv_width=4, eps=1e-6)
    rate = copy_rate()
    chunk_length = GpuSizes.chunk_length
    words = [f"--heads {dims.num_key_heads} {dims.num_value_heads}"]
    if options.chunk_lengths:
        words.append("--chunk-lengths " + " ".join(map(str, options.chunk_lengths)))
        runs = [("mixer", *shape, length) for shape in SHORT for length in options.chunk_lengths]
    elif options.mixers:
        words.append(" ".join(["--mixers", *options.mixers]))
        runs = [("mixer", *shape, chunk_length) for shape in SHAPES]
    else:
        words.append(" ".join(["--peers", *peers]) if peers else "")
        runs = [(scope, *shape, chunk_length) for scope in ("rule", "mixer") for shape in SHAPES]
    record = facts(" ".join(["python -m bench.gdn_prefill", *filter(None, words)]))
    record |= versions | {"copy_bytes_per_s": rate, "heads": list(options.heads), "rows": []}
    print(f"{record['gpu']}, torch {record['torch']}, triton {record['triton']}, copy {rate / 1e12:.2f} TB/s")
    print("| scope | sequences x tokens | chunk | us | host us | peak MiB | peers: us, times ours, host us, peak MiB |")
    for scope, count, length, chunk in runs:
        rule = scope == "rule"
        row = (
            bench_rule(dims, count, length, peers) if rule else bench_mixer(dims, count, length, chunk, options.mixers)
        )
        record["rows"].append(row)
        print(line(row, chunk, rate), flush=True)
        torch.cuda.empty_cache()
    if options.out:
        options.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
