"""Show on the shipped checkpoint that the first request costs no more than a later one, through the real server.

    python examples/demo.py [--seed N] [--requests N] [--break-the-seal]

Starts `hotstart serve`, waits until it is ready, asks it with the `openai` client: one request, a mixed batch of
prompts whose lengths are drawn at random, twenty more like the first one.  Scores the answers, compares the first with
the later ones, and reads the seal's counters.  Exits with 1 if something happened after the seal; `--break-the-seal`
takes memory in the engine on purpose, to show that it is seen.
"""

import argparse
import asyncio
import http.client
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table
from served import NotStarted, Served, serve
from tasks import Example, draw, is_held_out, make_example, score

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "tiny-qwen3.5"
BROKEN = Path(__file__).parent / "break_the_seal"
MODEL = "tiny-qwen3.5"
FLAGS = ("--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "512", "--strict")
STEADY_REQUESTS = 20
PAUSE_S = 0.15
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 80}

console = Console(highlight=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="of the prompts; default: another one each time")
    parser.add_argument("--requests", type=int, default=24, help="prompts of the mixed batch (default: 24)")
    parser.add_argument("--break-the-seal", action="store_true", help="take memory after the seal")
    arguments = parser.parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)

    heading(f"hotstart serve {CHECKPOINT.name}: all that can compile, load or take memory does so now")
    with serve(CHECKPOINT, *FLAGS, first_on_path=BROKEN if arguments.break_the_seal else None) as server:
        try:
            server.wait_ready(console)
        except NotStarted as error:
            console.print(f"the server did not start: {error}", style="red")
            return 1
        show_start(server)
        first = timed(server, sorting(rng))
        heading(f"A mixed batch: {arguments.requests} prompts at once, lengths drawn with --seed {seed}")
        show_batch(server, draw(arguments.requests, seed))
        heading("The first request beside steady ones, each after a pause")
        show_times(first, [timed(server, sorting(rng)) for _ in range(STEADY_REQUESTS)])
        heading("Since the seal")
        return show_seal(server)


def heading(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def show_start(server: Served) -> None:
    plan = server.ask("/plan")[1]
    seconds = sum(phase["seconds"] for phase in plan["startup"])
    slowest = sorted(plan["startup"], key=lambda phase: -phase["seconds"])[:3]
    most = ", ".join(f"{phase['name']} {phase['seconds']:.1f} s" for phase in slowest)
    console.print(f"ready and sealed after {seconds:.1f} s ({most}), at {server.url}\n", soft_wrap=True)
    table = Table("memory", "", "bytes", "", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for line in plan["memory_plan"]["lines"]:
        table.add_row(line["name"], line["origin"], f"{line['num_bytes']:,}", line["detail"])
    table.add_section()
    table.add_row("total", "", f"{plan['memory_plan']['total_bytes']:,}", plan["memory_plan"]["total_source"])
    console.print(table)


def sorting(rng: random.Random) -> Example:
    """Held-out prompts of one length."""
    return next(e for e in iter(lambda: make_example("sort", 12, rng), None) if is_held_out(e))


def timed(server: Served, example: Example) -> tuple[float, float]:
    """Milliseconds to the first event, and to the last, over a bare connection: a client has first times of its own.

    Each request comes after a pause, since the first one does: a machine that was kept busy answers sooner.
    """
    time.sleep(PAUSE_S)
    body = {"messages": [{"role": "user", "content": example.prompt}], "stream": True, **GREEDY}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    start = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    answer = connection.getresponse()
    answer.readline()
    first = time.perf_counter() - start
    assert answer.read().endswith(b"data: [DONE]\n\n"), "a stream broke off"
    connection.close()
    return 1000 * first, 1000 * (time.perf_counter() - start)


async def ask_all(server: Served, examples: list[Example]) -> list[Any]:
    """A completion each, or the error that it ended with."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked = [
            client.chat.completions.create(messages=[{"role": "user", "content": example.prompt}], **GREEDY)
            for example in examples
        ]
        return await asyncio.gather(*asked, return_exceptions=True)


def show_batch(server: Served, examples: list[Example]) -> None:
    results = asyncio.run(ask_all(server, examples))
    table = Table("task", "tokens in", "out", "prompt", "answer", "", box=None, pad_edge=False)
    answers = []
    for example, result in zip(examples, results, strict=True):
        prompt = shortened(example.prompt.partition(": ")[2])
        if isinstance(result, openai.APIStatusError):
            answers.append("")
            table.add_row(example.task, "", "", prompt, "", "[red]failed[/red]")
            continue
        if isinstance(result, BaseException):
            raise result
        answer = result.choices[0].message.content
        answers.append(answer)
        verdict = "[green]right[/green]" if answer == example.answer else f"[red]not {example.answer}[/red]"
        counts = (str(result.usage.prompt_tokens), str(result.usage.completion_tokens))
        table.add_row(example.task, *counts, prompt, shortened(answer), verdict)
    console.print(table)
    shares = score(examples, answers)
    console.print("right: " + ", ".join(f"{task} {share:.0%}" for task, share in shares.items()))
    recorded = json.loads((CHECKPOINT / "score.json").read_text())
    known = [f"{name} {value['exact']['all']:.1%} of {value['prompts']}" for name, value in recorded.items()]
    console.print(f"on record: {', '.join(known)}")
    for error in {str(result) for result in results if isinstance(result, BaseException)}:
        console.print(error, style="red", soft_wrap=True)


def shortened(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:8]}...{text[-9:]}"


def show_times(first: tuple[float, float], steady: list[tuple[float, float]]) -> None:
    table = Table("", "first", f"median of {len(steady)} later", "ratio", box=None, pad_edge=False)
    for name, early, later in zip(("to the first token", "to the last"), first, zip(*steady, strict=True), strict=True):
        median = statistics.median(later)
        table.add_row(name, f"{early:.1f} ms", f"{median:.1f} ms", f"{early / median:.2f}")
    console.print(table)


def show_seal(server: Served) -> int:
    plan = server.ask("/plan")[1]
    counts, growth = plan["late_counts"], plan["growth"]
    table = Table("what", "late events", box=None, pad_edge=False)
    for kind, count in counts.items():
        table.add_row(kind, "n/a" if count is None else f"[{'red' if count else 'green'}]{count}[/]")
    console.print(table)
    console.print("n/a: nothing on this device can be such an event, so a zero would prove nothing")
    resident = f", its process by {growth['resident_bytes']:,}" if growth["resident_bytes"] is not None else ""
    console.print(f"the engine's memory grew by {growth['arena_bytes']:,} bytes (allowed: 0){resident}")
    for event in plan["late_events"]:
        console.print(f"late {event['kind']}: {event['key']}: {event['cause']}", style="red", soft_wrap=True)
    return 1 if any(counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
