"""The first request of a fresh process against twenty more of its length, in several processes one after the other.

python -m bench.starts [--model qwen3.5-4b] [--count 7] [--out FILE]

The first process finds empty caches of compiled kernels, the others what it left there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import RESULTS
from bench.shapes import SHAPES, write_folder

__all__ = ["FLAGS", "SEQUENCES"]

FLAGS = (
    *("--device", "cuda", "--dtype", "bfloat16", "--load-format", "dummy", "--max-model-len", "9216"),
    *("--max-num-batched-tokens", "8192", "--strict", "--quiet"),
)
SEQUENCES = ("--max-num-seqs", "256")


def start(model: Path, caches: Path) -> dict[str, Any]:
    out = caches / "found.json"
    command = [sys.executable, "-m", "hotstart", "bench", "first-request", str(model), *FLAGS, *SEQUENCES]
    command.append(f"--output={out}")
    environment = os.environ | {"TRITON_CACHE_DIR": str(caches / "triton"), "XDG_CACHE_HOME": str(caches / "home")}
    subprocess.run(command, env=environment, check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    first = found.pop("first-request")
    kept = ("command", "date", "commit", "device", "cuda", "versions", "model", "options", "process_to_ready_s")
    counts = ("num_late", "reserved_growth_bytes", "driver_growth_bytes")
    return {
        **{name: found[name] for name in (*kept, *counts) if name in found},
        **{name: first[name] for name in ("prompt", "answer", "times_ms", "ratio", "errors")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="qwen3.5-4b")
    parser.add_argument("--count", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_starts.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as caches:
        model = write_folder(arguments.model, Path(caches))
        for _ in range(arguments.count):
            rows.append(start(model, Path(caches)))
            print(f"ready {rows[-1]['process_to_ready_s']:.2f} s, first / later {rows[-1]['ratio']:.4f}", flush=True)
            record = {"command": f"python -m bench.starts --model {arguments.model}", "rows": rows}
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
