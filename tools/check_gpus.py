"""Compile the kernels of every published size for every architecture we name, and replay random traffic for each."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import triton

from hotstart.config.published import PUBLISHED, published_config
from hotstart.engine.check import check

# One GPU for each pair of architecture and shared memory: the others compile the same binaries.
GPUS = ("a100", "rtx3090", "rtx4090", "h200", "b200", "rtx5090")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED))
    parser.add_argument("--gpus", nargs="+", default=GPUS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    failed, rows = 0, []
    for gpu in arguments.gpus:
        for model in arguments.models:
            start = time.perf_counter()
            report = check(published_config(model), model, gpu, num_steps=arguments.steps)
            failed += not report.passed
            shared = max(binary.shared_bytes for binary in report.warmup.binaries) / 1024
            rows.append(
                {
                    "gpu": gpu,
                    "model": model,
                    "binaries": len(report.warmup.binaries),
                    "late": len(report.late),
                    "unreached": len(report.unreached),
                    "shared_kib": shared,
                    "seconds": round(time.perf_counter() - start, 1),
                }
            )
            print(
                f"{gpu:<9}{model:<20}{len(report.warmup.binaries):>4} binaries, at most {shared:.0f} KiB shared, "
                f"{len(report.late)} late, {rows[-1]['seconds']} s",
                flush=True,
            )
    if arguments.out:
        record = {
            "command": " ".join(["python tools/check_gpus.py", *sys.argv[1:]]),
            "cores": len(os.sched_getaffinity(0)),
            "triton": triton.__version__,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
