"""Show on the shipped checkpoint that the first request costs no more than a later one.

    python examples/demo.py [--seed N] [--requests N] [--break-the-seal]

Starts the engine, answers a mixed batch of prompts whose lengths are drawn at random, scores the answers, compares the
first request with steady ones, and reads the seal's counters.  Exits with 1 if something happened after the seal;
`--break-the-seal` takes memory on purpose, to show that it is seen.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tasks import Example, chat_text, draw, is_held_out, make_example, score

from hotstart import LLM, HotstartError, SamplingParams

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "tiny-qwen3.5"
STEADY_REQUESTS = 20
GREEDY = SamplingParams(temperature=0.0, max_tokens=80)

console = Console(highlight=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="of the prompts; default: another one each time")
    parser.add_argument("--requests", type=int, default=24, help="prompts of the mixed batch (default: 24)")
    parser.add_argument("--break-the-seal", action="store_true", help="take memory after the seal")
    arguments = parser.parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)

    heading(f"Start on {CHECKPOINT.name}: all that can compile, load or take memory does so now")
    try:
        llm = LLM(CHECKPOINT, dtype="float32", max_model_len=512, jit_monitor_mode="error", seed=seed)
    except HotstartError as error:
        console.print(f"the engine did not start: {error}", style="red")
        return 1
    with llm:
        console.print(f"sealed after {llm.startup.seconds:.1f} s\n\n{llm.memory_plan.explain()}", soft_wrap=True)
        first = timed(llm, sorting(rng))
        late = [llm.engine.device.arena.allocate("demo", (2**20,), torch.uint8)] if arguments.break_the_seal else []
        heading(f"A mixed batch: {arguments.requests} prompts at once, lengths drawn with --seed {seed}")
        show_batch(llm, draw(arguments.requests, seed))
        del late
        heading("The first request beside steady ones")
        show_times(first, [timed(llm, sorting(rng)) for _ in range(STEADY_REQUESTS)])
        heading("Since the seal")
        return show_seal(llm)


def heading(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def sorting(rng: random.Random) -> Example:
    """Held-out prompts of one length."""
    return next(e for e in iter(lambda: make_example("sort", 12, rng), None) if is_held_out(e))


def timed(llm: LLM, example: Example) -> tuple[float, float]:
    """Milliseconds to the first text, and to the last."""
    start = time.perf_counter()
    times = [time.perf_counter() - start for _ in llm.stream(chat_text(example.prompt), GREEDY)]
    return 1000 * times[0], 1000 * times[-1]


def show_batch(llm: LLM, examples: list[Example]) -> None:
    results = llm.generate([chat_text(example.prompt) for example in examples], GREEDY)
    table = Table("task", "tokens in", "out", "prompt", "answer", "", box=None, pad_edge=False)
    for example, result in zip(examples, results, strict=True):
        answer = result.outputs[0]
        verdict = "[green]right[/green]" if answer.text == example.answer else f"[red]not {example.answer}[/red]"
        table.add_row(
            example.task,
            str(len(result.prompt_token_ids)),
            str(len(answer.token_ids)),
            shortened(example.prompt.partition(": ")[2]),
            shortened(answer.text),
            "[red]failed[/red]" if result.error else verdict,
        )
    console.print(table)
    shares = score(examples, [result.outputs[0].text for result in results])
    console.print("right: " + ", ".join(f"{task} {share:.0%}" for task, share in shares.items()))
    recorded = json.loads((CHECKPOINT / "score.json").read_text())
    known = [f"{name} {value['exact']['all']:.1%} of {value['prompts']}" for name, value in recorded.items()]
    console.print(f"on record: {', '.join(known)}")
    for error in {str(result.error) for result in results if result.error}:
        console.print(error, style="red", soft_wrap=True)


def shortened(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:8]}...{text[-9:]}"


def show_times(first: tuple[float, float], steady: list[tuple[float, float]]) -> None:
    table = Table("", "first", f"median of {len(steady)} later", "ratio", box=None, pad_edge=False)
    for name, early, later in zip(("to the first token", "to the last"), first, zip(*steady, strict=True), strict=True):
        median = statistics.median(later)
        table.add_row(name, f"{early:.1f} ms", f"{median:.1f} ms", f"{early / median:.2f}")
    console.print(table)


def show_seal(llm: LLM) -> int:
    counts, growth = llm.engine.late_counts, llm.engine.growth
    table = Table("what", "late events", box=None, pad_edge=False)
    for kind, count in counts.items():
        table.add_row(kind, "n/a" if count is None else f"[{'red' if count else 'green'}]{count}[/]")
    console.print(table)
    console.print("n/a: nothing on this device can be such an event, so a zero would prove nothing")
    resident = "" if growth.resident_bytes is None else f", the process by {growth.resident_bytes:,}"
    console.print(f"the engine's memory grew by {growth.arena_bytes:,} bytes (allowed: 0){resident}")
    for event in llm.late_events:
        console.print(str(event), style="red", soft_wrap=True)
    return 1 if any(counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
