"""Compile the kernels of every published size for every architecture we name, and replay random traffic for each."""

import argparse
import sys
import time

from hotstart.config.published import PUBLISHED, published_config
from hotstart.engine.check import check

# One GPU for each pair of architecture and shared memory: the others compile the same binaries.
GPUS = ("a100", "rtx3090", "rtx4090", "h200", "b200", "rtx5090")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED))
    parser.add_argument("--gpus", nargs="+", default=GPUS)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    failed = 0
    for gpu in arguments.gpus:
        for model in arguments.models:
            start = time.perf_counter()
            report = check(published_config(model), model, gpu, num_steps=arguments.steps)
            failed += not report.passed
            shared = max(binary.shared_bytes for binary in report.warmup.binaries) / 1024
            print(
                f"{gpu:<9}{model:<20}{len(report.warmup.binaries):>4} binaries, at most {shared:.0f} KiB shared, "
                f"{len(report.late)} late, {time.perf_counter() - start:.1f} s",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
