"""How a figure is taken: interleaved runs, medians, and a record of where it was taken."""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hotstart import __version__
from hotstart.bench.record import commit

__all__ = ["RESULTS", "compare", "seconds", "write_result"]

RESULTS = Path(__file__).parent / "results"
REST_S = 0.1  # OpenMP's threads spin for a while after work; the next to be timed must not share a core with them
PACKAGES = ("torch", "transformers", "tokenizers")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(timed: Mapping[str, Callable[[], float]], repeats: int, warmups: int = 2) -> dict[str, float]:
    """Median seconds of each, which takes and returns its own time.  Rounds alternate, so that a slow moment of the
    machine hits all of them; who goes first changes from round to round."""
    names = list(timed)
    found: dict[str, list[float]] = {name: [] for name in names}
    for round_id in range(warmups + repeats):
        for name in names if round_id % 2 else reversed(names):
            time.sleep(REST_S)
            value = timed[name]()
            if round_id >= warmups:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def write_result(name: str, rows: list[dict[str, Any]], **facts: object) -> None:
    """bench/results/NAME.json: rows of figures, and what produced them."""
    record = {
        "command": f"python -m bench.{name} {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "scheduling": _scheduling(),
        "python": platform.python_version(),
        "versions": {"hotstart": __version__} | {package: _version(package) for package in PACKAGES},
        "commit": commit(),
        **facts,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _scheduling() -> str:
    """On a machine that others use too, a benchmark is worth little without priority over them."""
    if not hasattr(os, "sched_getscheduler"):
        return "default"
    policy = {os.SCHED_FIFO: "real-time priority", os.SCHED_RR: "real-time priority"}.get(os.sched_getscheduler(0))
    return policy or (f"nice {os.nice(0)}" if os.nice(0) else "default")


def _cpu() -> str:
    """The model's name and the widest vectors it has: a virtual machine may hide the former."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    vectors = next((f for f in ("amx_tile", "avx512f", "avx2") if f in flags), "")
    return f"{fields.get('model name', platform.machine())} {vectors}".strip()
