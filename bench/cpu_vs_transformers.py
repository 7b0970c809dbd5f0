"""hotstart against transformers on a CPU: float32, two threads each, interleaved runs in one process, medians.

python -m bench.cpu_vs_transformers [--only tiny|0.8b] [--repeats 9]
"""

import argparse
import gc
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.utils import logging as transformers_logging

from bench.engines import Hotstart, Job, Transformers
from bench.measure import compare, write_result
from hotstart import LLM

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "tiny-qwen3.5"
NUM_THREADS = 2
PROMPT, ANSWER = 512, 64
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv")
ATTENTION = ("scaled_dot_product", "_flash_attention_for_cpu")

# Qwen3.5-0.8B, text part.
SHAPE_0_8B: dict[str, Any] = {
    "vocab_size": 248320,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "full_attention_interval": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}


def prompt(length: int, seed: int, vocabulary: int = 397) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocabulary) for _ in range(length)]


def crowd() -> list[Job]:
    """Sixteen requests of mixed lengths: prompts of 16 to 256 tokens, answers of 8 to 64."""
    rng = random.Random(16)
    return [Job(tuple(prompt(rng.randint(16, 256), i)), rng.randint(8, 64)) for i in range(16)]


def row(what: str, model: str, found: dict[str, float], target: float | None) -> dict[str, Any]:
    ours, peer = found["hotstart"], found["transformers"]
    ratio = peer / ours
    verdict = "" if target is None else f"  (target {target:g}x)"
    print(f"{model:5s} {what:34s} {ours * 1e3:9.2f} ms {peer * 1e3:9.2f} ms  {ratio:5.2f}x{verdict}", flush=True)
    return {
        "model": model,
        "what": what,
        "hotstart_ms": round(ours * 1e3, 3),
        "transformers_ms": round(peer * 1e3, 3),
        "ratio": round(ratio, 2),
        "target": target,
    }


def speeds(
    model: str, ours: Hotstart, peer: Transformers, repeats: int, targets: tuple[float, float]
) -> list[dict[str, Any]]:
    ids = prompt(PROMPT, 1)
    prefill: dict[str, Callable[[], float]] = {e.name: (lambda e=e: e.prefill(ids)) for e in (ours, peer)}
    decode: dict[str, Callable[[], float]] = {e.name: (lambda e=e: e.decode(ids[:64], ANSWER)) for e in (ours, peer)}
    return [
        row(f"prefill, {PROMPT} tokens", model, compare(prefill, repeats), targets[0]),
        row("decode, one sequence, one token", model, compare(decode, repeats), targets[1]),
    ]


def crowd_speed(model: str, ours: Hotstart, peer: Transformers, repeats: int, target: float | None) -> dict[str, Any]:
    jobs = crowd()
    ways = [(size, key) for size in (16, 8, 4) for key in ("prompt", "answer")]
    trial = {way: min(peer.serve_time(jobs, *way) for _ in range(2)) for way in ways}
    best = min(trial, key=trial.__getitem__)
    timed = {
        ours.name: lambda: ours.serve_time(jobs),
        peer.name: lambda: peer.serve_time(jobs, *best),
    }
    found = row("16 mixed requests at once", model, compare(timed, repeats), target)
    return found | {"static_batches": f"of {best[0]}, sorted by {best[1]} length"}


def outside_products(call: Callable[[], object]) -> float:
    """Seconds that operators spend outside matrix products; attention's fused kernel counts as products."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    events = profiled.key_averages()
    outside = [e for e in events if e.key not in MATRIX_PRODUCTS and not any(part in e.key for part in ATTENTION)]
    return sum(e.self_cpu_time_total for e in outside) * 1e-6


def tiny(repeats: int) -> list[dict[str, Any]]:
    with LLM(CHECKPOINT, dtype="float32", max_model_len=1024, num_threads=NUM_THREADS, use_tqdm=False) as llm:
        ours, peer = Hotstart(llm), Transformers.load(CHECKPOINT)
        rows = speeds("tiny", ours, peer, repeats, (2.0, 2.0))
        return [*rows, crowd_speed("tiny", ours, peer, repeats, 3.0)]


@contextmanager
def config_folder() -> Iterator[tuple[Path, Qwen3_5TextConfig]]:
    config = Qwen3_5TextConfig(architectures=["Qwen3_5ForCausalLM"], **SHAPE_0_8B)
    with tempfile.TemporaryDirectory() as name:
        config.save_pretrained(name)
        yield Path(name), config


def published_shape(repeats: int) -> list[dict[str, Any]]:
    with config_folder() as (folder, config):
        options = {"load_format": "dummy", "skip_tokenizer_init": True, "num_threads": NUM_THREADS, "use_tqdm": False}
        with LLM(folder, dtype="float32", max_model_len=1024, max_num_seqs=4, **options) as llm:
            ours, peer = Hotstart(llm), Transformers(Qwen3_5ForCausalLM(config).float())
            rows = speeds("0.8b", ours, peer, repeats, (1.15, 1.0))
            ids = prompt(PROMPT, 1)
            outside = {e.name: outside_products(lambda e=e: e.prefill(ids)) for e in (ours, peer)}
            rows.append(row(f"outside products, {PROMPT} tokens", "0.8b", outside, 3.0))
            return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("tiny", "0.8b"))
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    transformers_logging.set_verbosity_error()
    rows: list[dict[str, Any]] = []
    if arguments.only != "0.8b":
        rows += tiny(arguments.repeats)
        gc.collect()
    if arguments.only != "tiny":
        rows += published_shape(max(3, arguments.repeats // 2))
    if arguments.only:
        print(json.dumps(rows, indent=2))
    else:
        write_result("cpu_vs_transformers", rows, threads=NUM_THREADS, dtype="float32", repeats=arguments.repeats)


if __name__ == "__main__":
    main()
