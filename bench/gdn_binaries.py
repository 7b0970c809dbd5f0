"""What each chunk length adds to the warm-up of the prefill: binaries, seconds to compile them, shared memory.

    python -m bench.gdn_binaries [--out FILE.json]

Needs no GPU.  Seconds are this machine's CPU time, without the assembler's.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from hotstart.kernels import dry, gdn_chunked
from hotstart.kernels.launch import recording
from hotstart.kernels.ops import GdnDims, GdnWeights
from hotstart.kernels.step import PrefillInputs

DIMS = GdnDims(16, 32, 128, 128, conv_width=4, eps=1e-6)
TOKENS = 1024


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def step(chunk_length: int) -> PrefillInputs:
    count, ints = TOKENS // chunk_length, torch.int32
    return PrefillInputs(
        num_sequences=1,
        first_token=0,
        lengths=(TOKENS,),
        contexts=(TOKENS,),
        reads=(0,),
        writes=(0,),
        num_chunks=count,
        chunk_length=chunk_length,
        cu_seqlens=meta(2, dtype=ints),
        context_lens=meta(1, dtype=ints),
        page_table=meta(1, 1, dtype=ints),
        read_slots=meta(1, dtype=ints),
        write_slots=meta(1, dtype=ints),
        chunks=meta(count, 4, dtype=ints),
        cu_chunks=meta(2, dtype=ints),
    )


def compiled(target: str, chunk_length: int) -> dict[str, Any]:
    HV, K, V, W = DIMS.num_value_heads, DIMS.key_dim, DIMS.value_dim, DIMS.conv_width
    floats = torch.float32
    gates = meta(HV, dtype=floats), meta(HV, dtype=floats)
    weights = GdnWeights(meta(DIMS.conv_channels, W), *gates, meta(V, dtype=floats))
    packed, out = meta(TOKENS, DIMS.packed_width), meta(TOKENS, HV * V)
    states = meta(1, W, DIMS.conv_channels), meta(1, HV, V, K, dtype=floats)
    with dry.gpu(target), recording() as record:
        start = time.process_time()
        for choose in gdn_chunked.CHOICES:
            gdn_chunked.gdn_prefill(packed, weights, *states, step(chunk_length), DIMS, out, choose=choose)
        seconds = time.process_time() - start
    shared = max(binary.metadata.shared for binary in record.binaries.values())
    return {
        "target": target, "chunk_length": chunk_length, "binaries": len(record.binaries),
        "compile_s": round(seconds, 2), "shared_bytes": shared,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        knobs.cache.dir = folder
        rows = [compiled(target, length) for target in ("sm_90", "sm_120") for length in (16, 32, 64)]
    for row in rows:
        print(row)
    record = {
        "command": "python -m bench.gdn_binaries", "machine": platform.machine(), "torch": torch.__version__,
        "triton": triton.__version__, "rows": rows,
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
