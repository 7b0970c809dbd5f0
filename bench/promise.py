"""Everything that docs/PERFORMANCE.md says of the promise, on one GPU: a process a record, one after the other.

python -m bench.promise [--jobs gpu_tight,gpu_pressed] [--limit SECONDS] [--out FOLDER]

The first starts with empty caches of compiled kernels and of Python's bytecode, the others with what it left there.
"""

import argparse
import os
import time
from pathlib import Path

from bench.gpu_table import TOKENIZER, Job, run_lane
from bench.measure import RESULTS
from bench.starts import FLAGS, SEQUENCES

__all__ = ["JOBS"]

SHAPE = "qwen3.5-4b"
MANY = ("--max-num-seqs", "1024")
# 256 states, and pages for one of the longest sequences: many short ones have to give way to each other.
FEW_PAGES = (*SEQUENCES, "--kv-cache-memory-bytes", "12960MiB", "--requests", "3000", *TOKENIZER)
JOBS = (
    Job("gpu_cold", 0, SHAPE, "first-request", MANY, common=FLAGS),
    Job("gpu_warm", 0, SHAPE, "first-request", MANY, common=FLAGS),
    Job("gpu_pressed", 0, SHAPE, "traffic", FEW_PAGES, common=FLAGS),
    Job(
        *("gpu_tight", 0, SHAPE, "first-request,lengths,traffic,burst,neighbour"),
        (*MANY, "--gpu-memory-utilization", "0.975"),
        common=FLAGS,
    ),
    Job("gpu_starts", 0, SHAPE, "starts"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(job.name for job in JOBS))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    jobs = [job for job in JOBS if job.name in arguments.jobs.split(",")]
    arguments.out.mkdir(parents=True, exist_ok=True)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    run_lane(jobs, gpu, time.monotonic() + arguments.limit, arguments.out.absolute())


if __name__ == "__main__":
    main()
