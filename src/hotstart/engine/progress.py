"""What a person sees on stderr: the phases of start-up as they run, and how many requests are done."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from hotstart.engine.memory import as_size
from hotstart.engine.phases import OnPhase, Phase, PhaseProgress, ignore_phases

if TYPE_CHECKING:
    from hotstart.kernels.tune import OnTuning

__all__ = ["RequestProgress", "show_requests", "show_startup", "show_tuning"]

_BAR = 10  # columns


@contextmanager
def show_startup(enabled: bool = True) -> Iterator[OnPhase]:
    """A bar for each phase on a terminal; elsewhere a line for each phase that has ended."""
    console = Console(stderr=True)
    if not enabled:
        yield ignore_phases
    elif not console.is_terminal:
        yield partial(_print_phase, console)
    else:
        columns = TextColumn("{task.description:<16}"), BarColumn(bar_width=_BAR), TextColumn("{task.fields[result]}")
        with Progress(*columns, console=console) as bars:
            yield _PhaseBars(bars)


class _PhaseBars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Phase | PhaseProgress) -> None:
        if event.name not in self._tasks:
            self._tasks[event.name] = self._bars.add_task(event.name, total=None, result="")
        task = self._tasks[event.name]
        if isinstance(event, Phase):
            room = self._bars.console.width - 16 - _BAR - 2  # a longer line would squeeze the bar
            self._bars.update(task, total=1, completed=1, result=_result(event)[:room])
        elif event.total:
            self._bars.update(task, total=event.total, completed=event.done, result=event.note)


def _result(phase: Phase) -> str:
    size = f"+{as_size(phase.num_bytes)}" if phase.num_bytes else ""
    return f"{phase.seconds:7.2f} s  {size:>10}  {phase.detail}".rstrip()


def _print_phase(console: Console, event: Phase | PhaseProgress) -> None:
    if isinstance(event, Phase):
        console.print(f"{event.name:<16}{_result(event)}", highlight=False, soft_wrap=True)


class RequestProgress:
    """Requests done, and tokens by the second."""

    def __init__(self, bars: Progress, num_requests: int) -> None:
        self._bars = bars
        self._task = bars.add_task("requests", total=num_requests, tokens=0, rate=0.0)
        self._tokens = 0

    def update(self, new_tokens: int, new_finished: int) -> None:
        self._tokens += new_tokens
        elapsed = self._bars.tasks[self._task].elapsed or 1e-9
        self._bars.update(self._task, advance=new_finished, tokens=self._tokens, rate=self._tokens / elapsed)


@contextmanager
def show_requests(num_requests: int, enabled: bool = True) -> Iterator[RequestProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens, {task.fields[rate]:.0f}/s"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as bars:
        yield RequestProgress(bars, num_requests)


@contextmanager
def show_tuning() -> Iterator["OnTuning"]:
    """A bar for each kernel, with the seconds that all of them may yet take."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("at most {task.fields[left]:.0f} s more"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def on_tuning(kernel: str, done: int, total: int, seconds_left: float) -> None:
            if kernel not in tasks:
                tasks[kernel] = bars.add_task(kernel, left=0.0)
            bars.update(tasks[kernel], completed=done, total=total, left=seconds_left)

        yield on_tuning
