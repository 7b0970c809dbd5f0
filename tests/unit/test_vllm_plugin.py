"""The plugin for vLLM, against small stand-ins of the interfaces of vLLM 0.25.1: vLLM itself does not run here."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

# As `vllm.plugins.load_general_plugins` does it: each function of the group is called, in every process.
PROGRAM = """
import contextlib, importlib, json, os, sys, time
from prometheus_client import REGISTRY, generate_latest

name, _, function = sys.argv[1].partition(":")
for _ in range(2):
    getattr(importlib.import_module(name), function)()

from vllm.v1.worker.gpu_worker import Worker
import triton.testing
from types import SimpleNamespace as Of

FN, COMPILE = Of(name="k"), {"signature": {}, "constants": {}, "configs": [], "specialization_data": '{"options": {}}'}
worker = Worker()
assert worker.compile_or_warm_up_model(3) == 0.125
with contextlib.suppress(RuntimeError):
    triton.testing.do_bench(lambda: None)  # no driver is here: it is seen before it fails
from hotstart import vllm_plugin
from triton import knobs
knobs.runtime.jit_post_compile_hook(fn=FN, compile=COMPILE)
folder = vllm_plugin.Path(os.environ["HOTSTART_WATCH_DIR"])
end = time.monotonic() + 20
while not any(report["events"] for report in vllm_plugin.read_reports(folder)) and time.monotonic() < end:
    time.sleep(0.1)
print(json.dumps({
    "reports": vllm_plugin.read_reports(folder),
    "text": vllm_plugin.explain(vllm_plugin.read_reports(folder)),
    "metrics": generate_latest(REGISTRY).decode(),
    "calls": Worker.calls,
    "name": Worker.compile_or_warm_up_model.__name__,
}))
"""

# vllm/v1/worker/gpu_worker.py: its method compiles, tunes and captures, and returns what that took.
WORKER = """
import contextlib
import triton.testing
from triton import knobs

class Worker:
    calls = []

    def compile_or_warm_up_model(self, *args):
        self.calls.append(args)
        with contextlib.suppress(RuntimeError):
            triton.testing.do_bench(lambda: None)
        knobs.runtime.jit_post_compile_hook = self.monitor  # as vLLM's own monitor does at the end of its warm-up
        return 0.125

    @staticmethod
    def monitor(**info):
        Worker.calls.append(list(info))
"""


def entry_point() -> str:
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "vllm.general_plugins"
    ]["hotstart"]
    return found


def run(tmp_path: Path, worker: str) -> dict[str, object]:
    for folder in ("vllm", "vllm/v1", "vllm/v1/worker"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "vllm/v1/worker/gpu_worker.py").write_text(worker)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, entry_point()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "", "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}", "HOTSTART_WATCH_DIR": str(tmp_path / "reports")},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return {**found, "stderr": done.stderr}


def test_what_happens_after_the_warm_up_is_counted_and_nothing_is_changed(tmp_path: Path) -> None:
    found = run(tmp_path, WORKER)
    (report,) = found["reports"]
    assert report["before"] == {"compile": 0, "tuning": 1}
    assert report["counts"] == {"compile": 0, "tuning": 1, "load": 0, "memory": 0}
    assert report["bytes"] == {name: {"ready": 0, "now": 0} for name in ("torch reserved", "process at the driver")}
    # Its arguments and its result are passed on, and vLLM's own monitor still hears of compiles.
    assert (found["calls"], found["name"]) == ([[3], ["fn", "compile"]], "compile_or_warm_up_model")
    assert 'hotstart:vllm_late_events_total{kind="tuning",worker="0"} 1.0' in found["metrics"]
    assert 'hotstart:vllm_growth_bytes{memory="torch reserved",worker="0"} 0.0' in found["metrics"]
    assert "after ready 1 tuning" in found["text"] and "late tuning" in found["text"]
    assert "report  text=" in found["stderr"]
