"""The heart, without a GPU: three starts of a 4B model on a stand-in for an RTX 5090.

    python examples/three_acts.py [--model qwen3.5-4b] [--gpu rtx5090] [--steps 1000]

1. no warm-up: what compiles and tunes when the first requests come
2. a warm-up that was written by hand with one wrong dtype: what compiles all the same, and which argument differs
3. the warm-up that calls what serving calls: nothing, over a thousand random steps

hotstart's own kernels never tune themselves at a launch, so one norm of the model is not hotstart's here but has
Triton's autotuner, as kernels of other engines have.

Real here: the scheduler, the step inputs, the layers' host code, Triton's keys, its autotuner, compiler and assembler.
Simulated: launches, times on the device and bytes; weights are shapes without memory.  Exits with 1 if act three has an
event.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from rich.console import Console
from torch import Tensor

from hotstart.config.published import published_config
from hotstart.engine.check import Checker
from hotstart.kernels import dry
from hotstart.kernels.watch import LateEvent, Watch

FIRST_STEPS = 20


@triton.autotune([triton.Config({}, num_warps=warps) for warps in (2, 4, 8)], key=["D"])
@triton.jit
def _self_tuning_norm_kernel(x_ptr, weight_ptr, y_ptr, eps, D: tl.constexpr, BLOCK_D: tl.constexpr):
    i_t = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_x = tl.load(x_ptr + i_t * D + o_d, m_d, 0).to(tl.float32)
    b_w = tl.load(weight_ptr + o_d, m_d, 0).to(tl.float32)
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, axis=0) / D + eps) * (1 + b_w)
    tl.store(y_ptr + i_t * D + o_d, b_y.to(y_ptr.dtype.element_ty), m_d)


def self_tuning_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x)
    _self_tuning_norm_kernel[(x.shape[0],)](x, weight, y, eps, D=x.shape[1], BLOCK_D=triton.next_power_of_2(x.shape[1]))
    return y


def checker_of(model: str, state_dtype: str = "auto") -> Checker:
    checker = Checker(published_config(model), state_dtype=state_dtype)
    checker.ops = replace(checker.ops, rms_norm=self_tuning_norm)
    return checker


def warm_up(checker: Checker) -> None:
    """hotstart's kernels, and the op above as layers call it."""
    checker.warm_up()
    space = checker.space()
    for dtype in space.activation_dtypes:
        weight = space.empty(space.hidden_size, dtype=dtype)
        checker.ops.rms_norm(space.tokens(space.hidden_size, dtype), weight, space.eps)


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
    checker = checker_of(model)
    _self_tuning_norm_kernel.cache.clear()
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
            lambda checker: warm_up(checker_of(model, wrong)),
            FIRST_STEPS,
        ),
        play("3  the warm-up by the real path", model, gpu, warm_up, steps),
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
        "\nreal: scheduler, step inputs, the layers' host code, Triton's keys, autotuner, compiler and assembler"
        "\nsimulated: launches, device times and bytes; weights have shapes but no memory"
    )
    return 1 if played[-1].events else 0


def show(console: Console, act: Act) -> None:
    kinds = Counter(event.kind for event in act.events)
    told = ", ".join(f"{kinds[kind]} late {kind}{'s' * (kinds[kind] > 1)}" for kind in kinds) or "0 late"
    late = f"[{'red' if act.events else 'green'}]{told}[/]"
    console.print(f"\n[bold]{act.title}[/bold]")
    console.print(f"   {act.warmed} binaries before ready, {act.warm_s:.1f} s")
    console.print(f"   {act.steps} steps of random traffic, {act.serve_s:.1f} s: {late}")
    for event in act.events:
        name = event.key.partition("(")[0].strip("_")
        console.print(f"     {event.kind} {name}, {event.seconds:.2f} s: {event.cause}")


if __name__ == "__main__":
    logging.getLogger("hotstart").setLevel(logging.ERROR)  # the events are told act by act
    sys.exit(main())
