"""`hotstart audit SCRIPT`: run a program under the watch, and list what it compiled, tuned and loaded after "ready".

With --gpu NAME no GPU is needed: Triton compiles for that one, launches do nothing, and the program keeps its tensors
on the CPU.
"""

import argparse
import contextlib
import io
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hotstart.cli.flags import Commands
from hotstart.errors import ConfigError

if TYPE_CHECKING:
    from hotstart.kernels.watch import Watch

__all__ = ["add_command"]

EXIT_LATE = 1


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("audit", help="watch any program that uses Triton", description=__doc__)
    parser.add_argument("--gpu", metavar="NAME", help="stand in for this GPU: rtx5090, rtx4090, a100, h200, sm_90, ...")
    parser.add_argument("--ready", metavar="TEXT", help="the script is ready once it prints this; or it calls ready()")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="arguments of the script")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch  # here, so that `--help` needs no torch

    from hotstart import warmup
    from hotstart.kernels import dry

    if not Path(arguments.script).is_file():
        raise ConfigError(f"{arguments.script} is not a file; name the Python file to run")
    if arguments.gpu is None and not torch.cuda.is_available():
        raise ConfigError("there is no GPU here; name one to stand in for: --gpu rtx5090")
    memory = () if arguments.gpu else (warmup.MemoryWatch("torch.cuda.memory_reserved", torch.cuda.memory_reserved),)
    with contextlib.ExitStack() as stack:
        if arguments.gpu:
            stack.enter_context(dry.torch_answers(stack.enter_context(dry.gpu(arguments.gpu))))
        watch = stack.enter_context(warmup.Watch(memory=memory))
        audit = _Audit(watch)
        stack.enter_context(warmup.when_ready(audit.ready))
        if arguments.ready:
            stack.enter_context(contextlib.redirect_stdout(_Listener(sys.stdout, arguments.ready, audit.ready)))
        try:
            _run_script(arguments.script, arguments.arguments)
            watch.check()
        finally:
            print(audit.explain(), file=sys.stderr)
        if not watch.sealed:
            raise ConfigError(
                "the script never said that it is ready: call hotstart.warmup.ready(), or use --ready TEXT"
            )
    return EXIT_LATE if watch.events else 0


def _run_script(script: str, arguments: list[str]) -> None:
    before, sys.argv = sys.argv, [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
    finally:
        sys.path.pop(0)
        sys.argv = before


class _Audit:
    """What there was before ready, and when that was."""

    def __init__(self, watch: "Watch") -> None:
        self._watch = watch
        self._start = time.perf_counter()
        self._before = "never ready: "

    def ready(self) -> None:
        if not self._watch.sealed:
            self._before = f"before ready, {time.perf_counter() - self._start:.1f} s: "
            self._counts = len(self._watch.compiled), len(self._watch.tuned)
            self._watch.seal()

    def explain(self) -> str:
        watch = self._watch
        compiles, tunings = self._counts if watch.sealed else (len(watch.compiled), len(watch.tuned))
        lines = [f"{self._before}{compiles} compiles, {tunings} tuning runs"]
        if watch.sealed:
            lines.append(
                "after ready: " + (", ".join(f"{n} {kind}" for kind, n in watch.counts.items() if n) or "nothing")
            )
        seconds: dict[tuple[str, str, str], list[float]] = {}
        for event in watch.events:
            what = event.kind, event.key.partition("(")[0], event.cause
            seconds.setdefault(what, []).append(event.seconds)
        lines += [
            f"  {len(each):>3} x {kind:<8}{sum(each):>7.2f} s  {kernel}: {cause}"
            for (kind, kernel, cause), each in seconds.items()
        ]
        return "\n".join(lines)


class _Listener(io.TextIOBase):
    """Passes a script's output on, and notices when it says that it is ready."""

    def __init__(self, out: TextIO, text: str, found: Callable[[], None]) -> None:
        self._out = out
        self._text = text
        self._found = found
        self._tail = ""

    def write(self, text: str) -> int:
        self._out.write(text)
        self._tail += text
        if self._text in self._tail:
            self._found()
        self._tail = self._tail[-len(self._text) :]
        return len(text)

    def flush(self) -> None:
        self._out.flush()
