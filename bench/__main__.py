"""Run the CPU benchmarks one after the other, each in a process of its own, then write their figures into the docs."""

import subprocess
import sys

BENCHMARKS = (
    "bench.cpu_vs_transformers",
    "bench.first_request_cpu",
    "bench.first_chat",
    "bench.server_cpu",
    "bench.figures",
)

for name in BENCHMARKS:
    print(f"== {name}", flush=True)
    subprocess.run([sys.executable, "-m", name], check=True)
