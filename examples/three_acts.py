"""The heart, without a GPU: three starts of a 4B model on a stand-in for an RTX 5090.

    python examples/three_acts.py [--model qwen3.5-4b] [--gpu rtx5090] [--steps 1000]

1. no warm-up: what compiles when the first requests come
2. a warm-up that was written by hand with one wrong dtype: what compiles all the same, and which argument differs
3. the warm-up that calls what serving calls: nothing, over a thousand random steps

Real here: the scheduler, the step inputs, the layers' host code, Triton's keys, its compiler and assembler.  Simulated:
launches, times on the device and bytes; weights are shapes without memory.  Exits with 1 if act three has an event.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from hotstart.config.published import published_config
from hotstart.engine.check import Checker
from hotstart.kernels import dry
from hotstart.kernels.watch import LateEvent, Watch

FIRST_STEPS = 20


@dataclass(frozen=True)
class Act:
    title: str
    warmed: int  # binaries
    warm_s: float
    steps: int
    serve_s: float
    events: tuple[LateEvent, ...]


def play(title: str, model: str, gpu: str, warm: Callable[[Checker], None], steps: int) -> Act:
    """A process's worth: nothing compiled in an earlier act is known here, since each stub is another device."""
    checker = Checker(published_config(model))
    with dry.gpu(gpu), Watch() as watch:
        start = time.perf_counter()
        warm(checker)
        warmed, ready = len(watch.compiled), time.perf_counter()
        watch.seal()
        checker.run(steps, watch)
        return Act(title, warmed, ready - start, steps, time.perf_counter() - ready, tuple(watch.events))


def acts(model: str, gpu: str, steps: int) -> list[Act]:
    wrong = "bfloat16"  # the recurrent state's; the model keeps it in float32
    return [
        play("1  no warm-up", model, gpu, lambda checker: None, FIRST_STEPS),
        play(
            "2  a warm-up by hand, one dtype wrong",
            model,
            gpu,
            lambda checker: Checker(published_config(model), state_dtype=wrong).warm_up() and None,
            FIRST_STEPS,
        ),
        play("3  the warm-up by the real path", model, gpu, lambda checker: checker.warm_up() and None, steps),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3.5-4b")
    parser.add_argument("--gpu", default="rtx5090")
    parser.add_argument("--steps", type=int, default=1000, help="of the third act (default: 1000)")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as cold:
        os.environ["TRITON_CACHE_DIR"] = cold
        console.print(f"{arguments.model} on a stand-in for {arguments.gpu}, nothing compiled before")
        played = []
        for act in acts(arguments.model, arguments.gpu, arguments.steps):
            played.append(act)
            show(console, act)
    console.print(
        "\nreal: scheduler, step inputs, the layers' host code, Triton's keys, compiler and assembler"
        "\nsimulated: launches, device times and bytes; weights have shapes but no memory"
    )
    return 1 if played[-1].events else 0


def show(console: Console, act: Act) -> None:
    late = f"[{'red' if act.events else 'green'}]{len(act.events)} late[/]"
    console.print(f"\n[bold]{act.title}[/bold]")
    console.print(f"   {act.warmed} binaries before ready, {act.warm_s:.1f} s")
    console.print(f"   {act.steps} steps of random traffic, {act.serve_s:.1f} s: {late}")
    for event in act.events:
        name = event.key.partition("(")[0].strip("_")
        console.print(f"     {event.kind} {name}, {event.seconds:.2f} s: {event.cause}")


if __name__ == "__main__":
    logging.getLogger("hotstart").setLevel(logging.ERROR)  # the events are told act by act
    sys.exit(main())
