"""The first request of a process against the median of the next twenty of its length, in five fresh processes.

python -m bench.first_request_cpu
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from typing import Any

from bench.engines import NUM_THREADS, Hotstart, Job
from bench.measure import write_result

NUM_PROCESSES, NUM_LATER = 5, 20
PROMPT, ANSWER = 200, 16
TARGET = 1.1


def one_process() -> dict[str, float]:
    rng = random.Random(1)
    jobs = [Job([rng.randrange(397) for _ in range(PROMPT)], ANSWER) for _ in range(1 + NUM_LATER)]
    ours = Hotstart("tiny")
    times = [ours.crowd([job], {}) for job in jobs]
    assert not ours.llm.late_events, ours.llm.late_events
    return {"first": times[0], "later": statistics.median(times[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().child:
        print(json.dumps(one_process()))
        return
    command = [sys.executable, "-m", "bench.first_request_cpu", "--child"]
    found: list[dict[str, float]] = []
    for _ in range(NUM_PROCESSES):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print({name: f"{value * 1e3:.2f} ms" for name, value in found[-1].items()}, flush=True)
    ratios = [run["first"] / run["later"] for run in found]
    row: dict[str, Any] = {
        "model": "tiny",
        "what": f"first request, {PROMPT} in and {ANSWER} out",
        "first_ms": round(statistics.median(run["first"] for run in found) * 1e3, 3),
        "later_ms": round(statistics.median(run["later"] for run in found) * 1e3, 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "target": TARGET,
    }
    print(f"first / later: {row['ratio']} (at most {TARGET})")
    write_result("first_request_cpu", [row], threads=NUM_THREADS, dtype="float32", processes=NUM_PROCESSES)


if __name__ == "__main__":
    main()
