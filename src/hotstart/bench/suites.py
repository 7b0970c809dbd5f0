"""What `hotstart bench` measures.  A suite takes a sealed engine's client, and gives raw samples with their medians.

Times include the host's part: from the moment a request is there until its last token is.
"""

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from hotstart.bench.client import Client, Step, state
from hotstart.bench.traffic import NUMBERS, traffic
from hotstart.errors import ConfigError
from hotstart.request import StructuredOutputsParams

__all__ = ["SUITES", "Suite"]

Suite = Callable[[Client], dict[str, Any]]
NUM_LATER = 20
NUM_LENGTHS = 50
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "temperature, top_k 40": {"temperature": 0.8, "top_k": 40},
    "temperature, top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "temperature, min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "repetition, presence and frequency penalty": {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "logit_bias of 10 tokens": {"logit_bias": dict.fromkeys(range(10), 1.0)},
    "logprobs 5": {"logprobs": 5},
    "json schema": {"structured_outputs": StructuredOutputsParams(json=NUMBERS)},
}
NEIGHBOUR = """
import sys, torch
held = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print(len(held), flush=True)
sys.stdin.read()
"""


def startup(client: Client) -> dict[str, Any]:
    """Nothing but the start itself."""
    phases = client.engine.startup.phases
    return {"phases_s": {phase.name: phase.seconds for phase in phases}, "ready_s": sum(p.seconds for p in phases)}


def first_request(client: Client) -> dict[str, Any]:
    """The first request of the process, and twenty more of its length."""
    prompt, answer = min(1024, client.longest // 2), min(32, client.longest // 4)
    runs = [client.one(prompt, answer) for _ in range(1 + NUM_LATER)]
    times = [1e3 * run.last_s for run in runs]
    later = statistics.median(times[1:])
    return {
        "prompt": prompt,
        "answer": answer,
        "times_ms": times,
        "first_ms": times[0],
        "later_ms": later,
        "ratio": times[0] / later,
        "errors": [error for run in runs for error in run.errors],
        **state(client.engine),
    }


def latency(client: Client) -> dict[str, Any]:
    """Time to the first token by length of the prompt, and milliseconds a token of one answer alone."""
    lengths = [n for n in (64, 256, 1024, 4096, 8192, 32768) if client.fits(n, 1)]

    errors: list[str] = []

    def ms(prompt: int, answer: int) -> float:
        run = client.one(prompt, answer)
        errors.extend(run.errors)
        return 1e3 * run.last_s

    prompts = {str(n): _samples(partial(ms, n, 1), 7, enough_s=4.0) for n in lengths}
    short = min(64, client.longest // 2)
    long = min(256, client.longest - short - 1)

    def token_ms() -> float:
        return (ms(short, 1 + long) - ms(short, 1)) / long

    gaps = _samples(token_ms, 3)
    return {
        "ttft_samples_ms": prompts,
        "ttft_ms": {name: statistics.median(times) for name, times in prompts.items()},
        "token_samples_ms": gaps,
        "token_ms": statistics.median(gaps),
        "errors": errors,
    }


def throughput(client: Client) -> dict[str, Any]:
    """Crowds that come at once: 512 tokens in, 128 out."""
    found, (prompt, answer) = {}, _each(client)

    def rate(count: int, errors: list[str]) -> float:
        run = client.crowd(count, prompt, answer)
        errors += run.errors
        return run.num_tokens / run.last_s

    for count in (64, 256):
        errors: list[str] = []
        rates = _samples(partial(rate, count, errors), 3)
        found[f"{count}x{prompt}/{answer}"] = {
            "samples_per_s": rates,
            "output_tokens_per_s": statistics.median(rates),
            "errors": errors,
        }
    return found


def steps(client: Client) -> dict[str, Any]:
    """Every step of a crowd, and what the host takes of one in which all of its requests get a token."""
    (prompt, answer), count = _each(client), _together(client)
    rows: list[Step] = []
    for _ in range(2):  # the second is told
        for _ in range(count):
            client.add(prompt, answer)
        rows = client.steps()
    answers = [row for row in rows if row.tokens == count]
    return {
        "fields": Step._fields,
        "steps": [(row.tokens, round(row.ms, 4), round(row.waited_ms, 4)) for row in rows],
        "answers": count,
        "answer_step_ms": statistics.median(row.ms for row in answers) if answers else None,
        "answer_host_ms": statistics.median(row.ms - row.waited_ms for row in answers) if answers else None,
    }


def options(client: Client) -> dict[str, Any]:
    """What each option costs: the rate of a crowd of greedy requests over the rate of the same with the option."""
    (prompt, answer), count = _each(client), _together(client)
    ways = {name: way for name, way in OPTIONS.items() if "structured_outputs" not in way or client.engine.can_guide}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    errors: list[str] = []
    for round_id in range(3):
        for name, way in ways.items():
            run = client.crowd(count, prompt, answer, **way)
            if round_id:
                rates[name].append(run.num_tokens / run.last_s)
            errors += run.errors
    plain = statistics.median(rates["greedy"])
    ratios = {name: plain / statistics.median(found) for name, found in rates.items()}
    return {"samples_per_s": rates, "times_as_long": ratios, "errors": errors[:3], **state(client.engine)}


def _each(client: Client) -> tuple[int, int]:
    """Tokens in and out of each request of a crowd."""
    return min(512, client.longest // 2), min(128, client.longest // 4)


def _together(client: Client) -> int:
    """Requests of a crowd that is answered at once."""
    return min(64, client.engine.limits.max_num_seqs)


def _samples(call: Callable[[], float], count: int, enough_s: float = 12.0) -> list[float]:
    """As many; fewer once they have taken so many seconds."""
    start, found = time.perf_counter(), [call()]
    while len(found) < count and time.perf_counter() - start < enough_s:
        found.append(call())
    return found


def burst(client: Client) -> dict[str, Any]:
    """1024 requests at once, 8 tokens in and 8 out, twice."""
    seconds, errors = [], []
    for _ in range(2):
        run = client.crowd(1024, 8, 8)
        seconds.append(run.last_s)
        errors += run.errors
    return {"seconds": seconds, "failed": len(errors), "errors": errors[:3], **state(client.engine)}


def lengths(client: Client) -> dict[str, Any]:
    """Lengths that no request had before: the first of each against the second."""
    dice = random.Random(3)
    unseen = [n for n in range(1, min(client.longest - 4, 4096)) if n not in client.lengths]
    pairs, errors = [], list[str]()
    for length in dice.sample(unseen, min(NUM_LENGTHS, len(unseen))):
        first, second = client.one(length, 4), client.one(length, 4)
        pairs.append((length, 1e3 * first.last_s, 1e3 * second.last_s))
        errors += first.errors + second.errors
    ratios = sorted(first / second for _, first, second in pairs)
    return {
        "samples_ms": pairs,
        "median": statistics.median(ratios),
        "p95": ratios[int(0.95 * (len(ratios) - 1))],
        "errors": errors[:3],
        **state(client.engine),
    }


def neighbour(client: Client) -> dict[str, Any]:
    """Another process takes 2 GiB of the card, then the burst comes again."""
    command = [sys.executable, "-c", NEIGHBOUR]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        taken = int(other.stdout.readline() or 0)
        if not taken:
            raise ConfigError("no other process could take 2 GiB here: there is no GPU, or not as much of it is left")
        found = burst(client)
        other.stdin.close()
    return {"taken_bytes": taken, **found}


SUITES: dict[str, Suite] = {
    "startup": startup,
    "first-request": first_request,
    "latency": latency,
    "throughput": throughput,
    "steps": steps,
    "options": options,
    "lengths": lengths,
    "traffic": traffic,
    "burst": burst,
    "neighbour": neighbour,
}
