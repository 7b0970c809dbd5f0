"""hotstart against transformers on a CPU: float32, two threads each, a process each, interleaved runs, medians.

python -m bench.cpu_vs_transformers [--only tiny|0.8b] [--repeats 9]
"""

import argparse
import random
from typing import Any

from bench.engines import NUM_THREADS, EngineProcess, Job
from bench.measure import compare, write_result

PROMPT, CONTEXT = 512, 64
ANSWER = {"tiny": 64, "0.8b": 8}
BURST = {"tiny": 3, "0.8b": 0}
TARGETS = {"tiny": {"prefill": 2.0, "decode": 2.0}, "0.8b": {"prefill": 1.15, "decode": 1.0}}
CROWD_TARGET, OUTSIDE_TARGET = 3.0, 3.0
BATCHINGS = [{"size": size, "sorted_by": key} for size in (16, 8, 4) for key in ("prompt", "answer")]


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(397) for _ in range(length)]


def crowd() -> list[Job]:
    """Sixteen requests of mixed lengths: prompts of 16 to 256 tokens, answers of 8 to 64."""
    rng = random.Random(16)
    return [Job(prompt(rng.randint(16, 256), i), rng.randint(8, 64)) for i in range(16)]


def row(what: str, model: str, found: dict[str, float], target: float, **facts: str) -> dict[str, Any]:
    ours, peer = found["hotstart"], found["transformers"]
    print(f"{model:5s} {what:34s} {ours * 1e3:9.2f} ms {peer * 1e3:9.2f} ms  {peer / ours:5.2f}x (target {target:g}x)")
    return {
        "model": model,
        "what": what,
        "hotstart_ms": round(ours * 1e3, 3),
        "transformers_ms": round(peer * 1e3, 3),
        "ratio": round(peer / ours, 2),
        "target": target,
        **facts,
    }


def measure(model: str, repeats: int) -> list[dict[str, Any]]:
    ids, targets = prompt(PROMPT, 1), TARGETS[model]
    with EngineProcess("hotstart", model) as ours, EngineProcess("transformers", model) as peer:
        engines = {engine.name: engine for engine in (ours, peer)}
        prefill = compare({name: (lambda e=e: e.prefill(ids, BURST[model])) for name, e in engines.items()}, repeats)
        decode = compare(
            {name: (lambda e=e: e.decode(ids[:CONTEXT], ANSWER[model])) for name, e in engines.items()}, repeats
        )
        rows = [
            row(f"prefill, {PROMPT} tokens", model, prefill, targets["prefill"]),
            row("decode, one sequence, one token", model, decode, targets["decode"]),
        ]
        if model == "tiny":
            rows.append(_crowd(ours, peer, repeats))
        else:
            outside = compare({n: (lambda e=e: e.outside_products(ids)) for n, e in engines.items()}, 3, warmups=0)
            rows.append(row(f"outside products, {PROMPT} tokens", model, outside, OUTSIDE_TARGET))
    return rows


def _crowd(ours: EngineProcess, peer: EngineProcess, repeats: int) -> dict[str, Any]:
    jobs = crowd()
    trials = [min(peer.crowd(jobs, way) for _ in range(2)) for way in BATCHINGS]
    best = BATCHINGS[trials.index(min(trials))]
    found = compare({"hotstart": lambda: ours.crowd(jobs, {}), "transformers": lambda: peer.crowd(jobs, best)}, repeats)
    batches = f"of {best['size']}, sorted by {best['sorted_by']} length"
    return row("16 mixed requests at once", "tiny", found, CROWD_TARGET, static_batches=batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(TARGETS), help="print one model's figures, write no result")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in (arguments.only,) if arguments.only else TARGETS:
        rows += measure(model, arguments.repeats if model == "tiny" else max(3, arguments.repeats // 2))
    if not arguments.only:
        write_result("cpu_vs_transformers", rows, threads=NUM_THREADS, dtype="float32", repeats=arguments.repeats)


if __name__ == "__main__":
    main()
