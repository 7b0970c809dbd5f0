"""The engine on one GPU: start to ready, first request, time to first token, decode, a crowd, growth under a burst.

python -m bench.gpu_engine [--model qwen3.5-4b] [--parts first,ttft,...] [--set name=value ...]

Dummy weights in bfloat16 of a published size, greedy, prompts of random tokens.
"""

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import triton

from bench.measure import write_result
from hotstart.config.engine import EngineConfig
from hotstart.config.published import PUBLISHED
from hotstart.engine import startup
from hotstart.engine.engine import Engine
from hotstart.engine.phases import Phase
from hotstart.request import Request, SamplingParams

PARTS = ("first", "ttft", "decode", "crowd", "random", "burst", "neighbour")
WISHES = {
    "max_model_len": 9216,
    "max_num_seqs": 1024,
    "max_num_batched_tokens": 8192,
    "jit_monitor_mode": "error",
}
NEIGHBOUR = """
import sys, torch
held = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
print(len(held), flush=True)
sys.stdin.read()
"""


class Client:
    """Requests with random prompts, and when their tokens came."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.random = random.Random(1)
        self.count = 0

    def add(self, prompt: int, answer: int, **params: Any) -> str:
        self.count += 1
        ids = tuple(self.random.choices(range(self.engine.vocab_size), k=prompt))
        wishes = {"temperature": 0.0, "max_tokens": answer, "ignore_eos": True, **params}
        self.engine.add(Request(str(self.count), ids, SamplingParams(**wishes), time.monotonic()))
        return str(self.count)

    def drain(self) -> tuple[float, float, int, int]:
        """Seconds to the first token and to the last, tokens, and requests that failed."""
        start, first, tokens, failed = time.perf_counter(), 0.0, 0, 0
        while self.engine.has_work:
            for event in self.engine.step():
                first = first or time.perf_counter() - start
                tokens += len(event.token_ids)
                failed += event.error is not None
                if event.error is not None and failed == 1:
                    print("failed:", event.error, flush=True)
        return first, time.perf_counter() - start, tokens, failed

    def one(self, prompt: int, answer: int) -> tuple[float, float]:
        """Milliseconds to the first token, and to the last."""
        self.add(prompt, answer)
        first, last, _, _ = self.drain()
        return 1e3 * first, 1e3 * last


def first(client: Client) -> dict[str, Any]:
    times = [client.one(1024, 32)[1] for _ in range(21)]
    later = statistics.median(times[1:])
    return {"first_ms": times[0], "second_ms": times[1], "later_ms": later, "ratio": times[0] / later}


def ttft(client: Client) -> dict[str, Any]:
    lengths = (64, 256, 1024, 4096, 8192)
    return {f"{n}_ms": statistics.median(client.one(n, 1)[1] for _ in range(7)) for n in lengths}


def decode(client: Client) -> dict[str, Any]:
    """Milliseconds a token, from the difference of a long and a short answer."""
    found = [(client.one(64, 257)[1] - client.one(64, 1)[1]) / 256 for _ in range(3)]
    return {"batch_1_ms": statistics.median(found)}


def crowd(client: Client) -> dict[str, Any]:
    rows = {}
    for count in (64, 256):
        rates = []
        for _ in range(3):
            for _ in range(count):
                client.add(512, 128)
            _, last, tokens, failed = client.drain()
            rates.append(tokens / last)
        rows[f"{count}x512/128"] = {"output_tokens_s": rates, "failed": failed}
    return rows


def random_traffic(client: Client, num_requests: int = 1000) -> dict[str, Any]:
    dice, failed = random.Random(2), 0
    for first in range(0, num_requests, 100):
        for i in range(first, min(first + 100, num_requests)):
            params = {
                "temperature": dice.choice((0.0, 0.0, 0.8)),
                "top_k": dice.choice((0, 40)),
                "top_p": dice.choice((1.0, 0.9)),
                "logprobs": dice.choice((None, None, None, 5)),
                "seed": i,
            }
            client.add(int(2 ** dice.uniform(0, 12)), dice.choice((1, 4, 40)), **params)
        for _ in range(20):
            failed += sum(event.error is not None for event in client.engine.step())
        client.engine.abort(str(client.count))
    return {"requests": num_requests, "failed": failed + client.drain()[3], **state(client.engine)}


def burst(client: Client) -> dict[str, Any]:
    seconds = []
    for _ in range(2):
        for _ in range(1024):
            client.add(8, 8)
        _, last, _, failed = client.drain()
        seconds.append(last)
    return {"seconds": seconds, "failed": failed, **state(client.engine)}


def neighbour(client: Client) -> dict[str, Any]:
    """Another process takes 2 GiB of the card, then the burst comes again."""
    command = [sys.executable, "-c", NEIGHBOUR]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        taken = int(other.stdout.readline() or 0)
        found = burst(client)
        other.stdin.close()
    return {"taken_bytes": taken, "failed": found["failed"]}


def state(engine: Engine) -> dict[str, Any]:
    growth = engine.growth
    return {
        "late_events": [str(event) for event in engine.late_events],
        "reserved_growth_bytes": growth.arena_bytes,
        "driver_growth_bytes": growth.resident_bytes,
        "preemptions": engine.use.num_preemptions,
    }


RUN = (first, ttft, decode, crowd, random_traffic, burst, neighbour)


def _process_start() -> float:
    """Seconds since boot at which this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def show(event: object) -> None:
    if isinstance(event, Phase):
        print(
            f"  {event.name:<18}{event.seconds:8.2f} s  {event.num_bytes / 2**20:10.0f} MiB  {event.detail}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3.5-4b", choices=PUBLISHED)
    parser.add_argument("--parts", default=",".join(PARTS[:-1]), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--name", default="gpu_engine", help="of the file in bench/results")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of EngineConfig")
    arguments = parser.parse_args()
    wishes: dict[str, Any] = WISHES | dict(pair.split("=", 1) for pair in arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(PUBLISHED[arguments.model]))
        start = time.perf_counter()
        engine = startup.start(
            EngineConfig(model=folder, load_format="dummy", device="cuda", dtype="bfloat16", **wishes), show
        )
    ready = time.perf_counter() - start
    since_exec = time.clock_gettime(time.CLOCK_BOOTTIME) - _process_start()
    print(engine.memory_plan.explain(), f"ready in {ready:.2f} s", sep="\n", flush=True)
    row: dict[str, Any] = {
        "model": arguments.model,
        "ready_s": ready,
        "process_to_ready_s": since_exec,
        "phases_s": {phase.name: phase.seconds for phase in engine.startup.phases},
        "plan": engine.memory_plan.as_dict(),
    }
    client, parts = Client(engine), dict(zip(PARTS, RUN, strict=True))
    for name in arguments.parts.split(","):
        row[name] = parts[name](client)
        print(name, json.dumps(row[name]), flush=True)
    row |= state(engine)
    print(json.dumps(state(engine)), flush=True)
    engine.close()
    write_result(
        arguments.name,
        [row],
        command=f"python -m bench.gpu_engine {shlex.join(sys.argv[1:])}".strip(),
        gpu=torch.cuda.get_device_name(),
        cuda=torch.version.cuda,
        triton=triton.__version__,
    )


if __name__ == "__main__":
    main()
