"""hotstart, vLLM and transformers on one shape in the same run, each in a process of its own.

python -m bench.peers [--model qwen3.5-4b] [--engines hotstart,transformers-fla] [--limit SECONDS] [--out FILE]

Random weights in bfloat16, greedy, prefix caching off, empty caches of compiled kernels.  Engines start side by side.
One that has no warm-up (transformers) makes its first requests then, too: they are its warm-up.  Everything else is
timed alone: while one is asked, the processes of all others are stopped.  A figure is written as soon as it is known;
what is not finished within the limit is told as such, and an engine that is not installed is left out.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.measure import RESULTS
from bench.peer_engines import ENGINES, NUM_TOKENS, TASKS, Task, work
from bench.shapes import SHAPES, write_folder

__all__ = ["compare"]

REST_S = 1.0  # what the others had launched before they were stopped still runs for a while
Record = dict[str, Any]


@dataclass(slots=True, eq=False)
class Running:
    """A side at work: its process, its row, and when it stood still."""

    process: BaseProcess
    pipe: Connection
    log: Path
    row: Record
    has_ended: bool = False
    since: float = field(default_factory=time.perf_counter)
    pauses: list[tuple[float, float]] = field(default_factory=list)

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended, or has no session of its own yet
            os.killpg(self.process.pid, number)

    def take(self) -> str:
        """What it says, kept in its row, and the kind of it; "done" once its process has ended."""
        try:
            said = self.pipe.recv()
        except EOFError:
            self.has_ended = True
            return "done"
        tasks: dict[str, Record] = self.row["tasks"]
        match said:
            case ("ready", moment, facts):
                self.row |= {"start_s": round(self._seconds(self.since, moment), 2), **facts}
            case ("first", name, (start, end)):
                tasks.setdefault(name, {})["first_ms"] = round(1e3 * self._seconds(start, end), 3)
            case ("later", name, times):
                tasks[name]["later_ms"] = [round(1e3 * one, 3) for one in times]
        return str(said[0])

    def _seconds(self, start: float, end: float) -> float:
        """Between two moments, without the pauses in between."""
        return end - start - sum(max(min(end, b) - max(start, a), 0.0) for a, b in self.pauses)


def compare(
    folder: Path, engines: Sequence[str], out: Path, limit_s: float, device: str = "cuda", tasks: Sequence[Task] = TASKS
) -> Record:
    """Ask all of them, and write what they say to `out`, anew after each figure."""
    end = time.perf_counter() + limit_s
    rows = {engine: {"engine": ENGINES[engine].name, "tasks": {}} for engine in engines}
    record = {
        "command": f"python -m bench.peers --model {folder.name} --engines {','.join(engines)} --limit {limit_s:g}",
        "date": time.strftime("%Y-%m-%d"),
        "model": folder.name,
        "sizes": {task.name: task.sizes for task in tasks},
        "rows": list(rows.values()),
    }

    def write() -> None:
        for row in rows.values():
            _derive(row)
        out.write_text(json.dumps(record, indent=1) + "\n")

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        running = list(_start(rows, folder, device, tasks, Path(caches)))
        waiting = {side.pipe: side for side in running}
        while waiting and (left := end - time.perf_counter()) > 0:
            ready = set(wait(list(waiting), left))
            for side in [waiting[pipe] for pipe in waiting if pipe in ready]:
                said = side.take()
                write()
                if said == "waits":
                    _ask_alone(side, [other for other in running if other is not side], end, write)
                if said in ("waits", "done"):
                    del waiting[side.pipe]
        for side in running:
            _finish(side, len(tasks), limit_s)
        write()
    return record


def _start(
    rows: Mapping[str, Record], folder: Path, device: str, tasks: Sequence[Task], caches: Path
) -> Iterator[Running]:
    spawn = multiprocessing.get_context("spawn")
    for engine, row in rows.items():
        missing = [module for module in ENGINES[engine].needs if importlib.util.find_spec(module) is None]
        if missing:
            row["left_out"] = f"{', '.join(missing)} is not installed"
            continue
        mine, theirs = spawn.Pipe()
        (caches / engine).mkdir()
        process = spawn.Process(target=work, args=(engine, folder, device, tasks, caches / engine, theirs))
        process.start()
        theirs.close()
        yield Running(process, mine, caches / engine / "log.txt", row)


def _ask_alone(side: Running, others: Sequence[Running], end: float, write: Callable[[], None]) -> None:
    """The rest of its row, while nobody else is at work."""
    start = time.perf_counter()
    for other in others:
        other.signal(signal.SIGSTOP)
    time.sleep(REST_S)
    side.pipe.send("go")
    while side.pipe.poll(max(end - time.perf_counter(), 0.0)):
        said = side.take()
        write()
        if said == "done":
            break
    for other in others:
        other.signal(signal.SIGCONT)
        other.pauses.append((start, time.perf_counter()))


def _finish(side: Running, num_tasks: int, limit_s: float) -> None:
    """End its process; a row that is not whole says why."""
    is_whole = sum("later_ms" in task for task in side.row["tasks"].values()) == num_tasks
    if side.has_ended:
        side.process.join()
    code = side.process.exitcode
    side.signal(signal.SIGKILL)
    side.process.join()
    if is_whole:
        return
    side.row["not_finished"] = f"not finished in {limit_s:.0f} s" if code is None else f"ended with code {code}"
    print(f"{side.row['engine']}: {side.row['not_finished']}\n{side.log.read_text()[-3000:]}", flush=True)


def _derive(row: Record) -> None:
    """A token after the first, from both kinds of later requests."""
    tasks = row["tasks"]
    if all("later_ms" in tasks.get(name, {}) for name in ("first_token", "answer")):
        answer, first = (statistics.median(tasks[name]["later_ms"]) for name in ("answer", "first_token"))
        row["token_ms"] = (answer - first) / NUM_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="qwen3.5-4b")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}; default: all")
    parser.add_argument("--out", type=Path, help="default: peers-4b.json and the like in bench/results/table")
    parser.add_argument("--limit", type=float, default=110.0, help="seconds for all together")
    arguments = parser.parse_args()
    unknown = set(arguments.engines.split(",")) - ENGINES.keys()
    if unknown:
        parser.error(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    out = arguments.out or RESULTS / "table" / f"peers-{arguments.model.removeprefix('qwen3.5-')}.json"
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(arguments.model, Path(temporary))
        record = compare(folder, arguments.engines.split(","), out, arguments.limit)
    for row in record["rows"]:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
