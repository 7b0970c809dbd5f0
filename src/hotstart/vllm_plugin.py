"""Inside vLLM: count what compiles, is tuned, is loaded and grows after a worker said that it was ready.

vLLM calls `register` in each of its processes (entry point group vllm.general_plugins).  Nothing that vLLM does is
changed: a worker's `compile_or_warm_up_model` is followed, and after it the watch of `hotstart.warmup` is sealed.  Each
worker writes what it saw into a folder; a process that answers /metrics shows all of them there.

    python -m hotstart.vllm_plugin FOLDER     the report as text
"""

import atexit
import dataclasses
import functools
import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from hotstart import log

__all__ = ["FOLDER_VARIABLE", "explain", "read_reports", "register"]

FOLDER_VARIABLE = "HOTSTART_WATCH_DIR"
WORKER_MODULE, WORKER, READY = "vllm.v1.worker.gpu_worker", "Worker", "compile_or_warm_up_model"
LOOK_S = 1.0  # between two looks at the memory and at the hooks
DRIVER_SLACK_BYTES = 32 << 20  # of the process at the driver, beside torch's own
_registered: list[str] = []


def register() -> None:
    """vLLM may call it more than once; the folder is the same for all processes that come from this one."""
    if _registered:
        return
    folder = os.environ.get(FOLDER_VARIABLE) or tempfile.mkdtemp(prefix="hotstart-watch-")
    os.environ[FOLDER_VARIABLE] = folder
    Path(folder).mkdir(parents=True, exist_ok=True)
    _registered.append(folder)
    _show_metrics(Path(folder))
    if WORKER_MODULE in sys.modules:
        _follow(sys.modules[WORKER_MODULE])
    else:
        sys.meta_path.insert(0, _AfterImport(WORKER_MODULE, _follow))


class _AfterImport(MetaPathFinder):
    """Calls `then` with a module once it has been imported, by whomever."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)  # once is enough, and the search below must find the module itself
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_tell(module: ModuleType) -> None:
            run(module)
            self._then(module)

        spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]  # this spec's own loader
        return spec


def _follow(module: ModuleType) -> None:
    worker = getattr(module, WORKER, None)
    warm_up = getattr(worker, READY, None)
    if worker is None or warm_up is None:
        log.warning("nothing is watched", cause=f"{WORKER_MODULE} has no {WORKER}.{READY}")
        return
    watched = _Watched(Path(_registered[0]))

    @functools.wraps(warm_up)
    def warm_up_then_seal(*args: Any, **keywords: Any) -> Any:
        found = warm_up(*args, **keywords)
        watched.ready()
        return found

    setattr(worker, READY, warm_up_then_seal)


class _Watched:
    """One worker's watch.  It is looked after by a thread, so that no step of vLLM's waits for it."""

    def __init__(self, folder: Path) -> None:
        from hotstart.kernels.watch import Watch  # here: torch and Triton are for workers

        self._folder = folder
        self._memory = _memory()
        self._watch = Watch("warn", self._memory)
        self._before = (0, 0)
        self._ready_at = 0.0
        self._at_ready: dict[str, int] = {}

    def ready(self) -> None:
        if self._watch.sealed:
            return
        self._path = self._folder / f"{os.getpid()}.json"  # only now: a worker may have been forked since
        self._before = len(self._watch.compiled), len(self._watch.tuned)
        self._ready_at = time.time()
        self._at_ready = self._bytes()
        self._watch.seal()
        self.write()
        log.info("watching", compiles_before=self._before[0], tunings_before=self._before[1], report=self._path)
        threading.Thread(target=self._look, name="hotstart-watch", daemon=True).start()
        atexit.register(self._end)

    def write(self) -> None:
        """In one move, so that whoever reads it reads all of it."""
        now = self._bytes()
        report = {
            "pid": os.getpid(),
            "ready_at": self._ready_at,
            "before": {"compile": self._before[0], "tuning": self._before[1]},
            "counts": self._watch.counts,
            "bytes": {name: {"ready": self._at_ready[name], "now": now[name]} for name in now},
            "events": [dataclasses.asdict(event) for event in self._watch.events],
        }
        unfinished = self._path.with_suffix(".new")
        unfinished.write_text(json.dumps(report))
        unfinished.replace(self._path)

    def _bytes(self) -> dict[str, int]:
        return {memory.name: memory.read() for memory in self._memory}

    def _look(self) -> None:
        while self._watch.sealed:
            time.sleep(LOOK_S)
            self._watch.check()
            self.write()

    def _end(self) -> None:
        self._watch.check()
        self.write()
        log.info("report", text=explain([json.loads(self._path.read_text())]).replace("\n", "; "))


def _memory() -> tuple[Any, ...]:
    import torch

    from hotstart.engine.cuda import process_bytes
    from hotstart.kernels.watch import MemoryWatch

    is_initialized: Callable[[], bool] = torch.cuda.is_initialized

    def reserved() -> int:
        return torch.cuda.memory_reserved() if is_initialized() else 0

    def at_driver() -> int:
        return (process_bytes(torch.cuda.current_device()) or 0) if is_initialized() else 0

    return MemoryWatch("torch reserved", reserved), MemoryWatch("process at the driver", at_driver, DRIVER_SLACK_BYTES)


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Of all workers that were ready, oldest first."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda report: (report["ready_at"], report["pid"]))


def explain(reports: Sequence[dict[str, Any]]) -> str:
    lines = []
    for report in reports:
        before = ", ".join(f"{count} {kind}" for kind, count in report["before"].items())
        after = ", ".join(f"{count} {kind}" for kind, count in report["counts"].items() if count) or "nothing"
        lines.append(f"worker {report['pid']}: before ready {before}; after ready {after}")
        lines += [f"  {name}: {each['now'] - each['ready']:+,} bytes" for name, each in report["bytes"].items()]
        lines += [f"  late {e['kind']}, {e['seconds']:.2f} s: {e['key']}: {e['cause']}" for e in report["events"]]
    return "\n".join(lines) or "no worker was ready"


def _show_metrics(folder: Path) -> None:
    """In this process's registry: vLLM's API server answers /metrics from it, unless it runs several of itself."""
    from prometheus_client import REGISTRY
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.metrics_core import CounterMetricFamily
    from prometheus_client.registry import Collector

    class Reports(Collector):
        def collect(self) -> Iterator[Metric]:
            labels = ["worker"]
            late = CounterMetricFamily("hotstart:vllm_late_events", "after ready", labels=[*labels, "kind"])
            grown = GaugeMetricFamily("hotstart:vllm_growth_bytes", "since ready", labels=[*labels, "memory"])
            for number, report in enumerate(read_reports(folder)):
                for kind, count in report["counts"].items():
                    late.add_metric([str(number), kind], count)
                for name, each in report["bytes"].items():
                    grown.add_metric([str(number), name], each["now"] - each["ready"])
            yield late
            yield grown

    REGISTRY.register(Reports())


if __name__ == "__main__":
    print(explain(read_reports(Path(sys.argv[1]))))
