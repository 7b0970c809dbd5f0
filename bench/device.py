"""How a figure is taken on a GPU: replayed graphs, events, and a record of where it was taken."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from hotstart.bench.record import commit, gpu_state

__all__ = ["MIN_TOUCHED", "copy_rate", "facts", "host_us", "samples_us"]

MIN_TOUCHED = 200e6  # bytes, before a call's memory is used again: nothing is found in the L2 cache
REPLAYS = 30


def elapsed_us(call: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e3)
    return found[3:]


def copy_rate() -> float:
    """Bytes read and written per second by a device copy of 2 GiB."""
    source, target = (torch.empty(2**31, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * 2**31 / (statistics.median(elapsed_us(lambda: target.copy_(source), 20)) / 1e6)


def samples_us(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Microseconds a call, one figure for each replay of a graph of all calls."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return [round(value / len(calls), 2) for value in elapsed_us(graph.replay, REPLAYS)]


def host_us(call: Callable[[], object]) -> float:
    """Of an eager call that finds the device idle: a full queue would let it wait.

    The median of the quietest of ten runs, since others may work on the machine's cores.
    """
    medians = []
    for _ in range(10):
        found = []
        for _ in range(25):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            found.append((time.perf_counter() - start) * 1e6)
        medians.append(statistics.median(found))
    return round(min(medians), 1)


def facts(command: str) -> dict[str, Any]:
    return {
        "command": command,
        "gpu": torch.cuda.get_device_name(),
        **gpu_state(torch.device("cuda", torch.cuda.current_device())),
        "commit": commit(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
