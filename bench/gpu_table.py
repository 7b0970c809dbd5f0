"""Everything that docs/PERFORMANCE.md says of speed on a GPU, on all GPUs that are here: raw samples, a file a job.

python -m bench.gpu_table [--jobs 4b,9b] [--limit SECONDS] [--out FOLDER]

Jobs stand in two lanes, which share one GPU or have one each; a lane starts with empty caches of compiled kernels and
of Python's bytecode, and its first start is a cold one.  A job that does not end within its limit is told and left out;
what it measured stays.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.measure import RESULTS
from bench.shapes import write_folder

__all__ = ["FLAGS", "JOBS", "TOKENIZER", "Job", "run_lane"]

ROOT = Path(__file__).parents[1]
FLAGS = (
    *("--device", "cuda", "--dtype", "bfloat16", "--load-format", "dummy", "--max-model-len", "33792", "--quiet"),
    *("--max-num-batched-tokens", "8192", "--max-num-seqs", "256", "--jit-monitor-mode", "error"),
)
TOKENIZER = ("--tokenizer", str(ROOT / "checkpoints" / "tiny-qwen3.5"))
BFLOAT16 = ("--mamba-ssm-cache-dtype", "bfloat16")


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    lane: int
    shape: str
    suites: str  # of `hotstart bench`; "peers" is bench.peers, "starts" is bench.starts
    flags: tuple[str, ...] = ()
    limit_s: float = 120.0
    common: tuple[str, ...] = FLAGS

    def command(self, folder: Path, out: Path) -> list[str]:
        if self.suites in ("peers", "starts"):
            limit = [f"--limit={self.limit_s - 5:g}"] if self.suites == "peers" else []
            return [sys.executable, "-m", f"bench.{self.suites}", "--model", self.shape, "--out", str(out), *limit]
        model, flags = str(write_folder(self.shape, folder)), (*self.common, *self.flags)
        return [sys.executable, "-m", "hotstart", "bench", self.suites, model, *flags, f"--output={out}"]


JOBS = (
    Job("4b", 0, "qwen3.5-4b", "first-request,latency,throughput,steps"),
    Job("4b-warm", 0, "qwen3.5-4b", "startup"),
    Job("9b", 0, "qwen3.5-9b", "first-request,latency,throughput"),
    Job("peers-4b", 0, "qwen3.5-4b", "peers"),
    Job("0.8b", 1, "qwen3.5-0.8b", "first-request,latency,throughput,steps"),
    Job("next-small", 1, "next-small", "first-request,latency,throughput,steps"),
    Job("next-small-bf16-state", 1, "next-small", "latency,throughput", BFLOAT16),
    Job("4b-options", 1, "qwen3.5-4b", "options", TOKENIZER),
    Job("4b-bf16-state", 1, "qwen3.5-4b", "latency,throughput", BFLOAT16),
    Job("peers-0.8b", 1, "qwen3.5-0.8b", "peers"),
    Job("27b", 1, "qwen3.5-27b", "first-request,latency,throughput"),
)


def run_lane(jobs: Iterable[Job], gpu: str, end: float, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TRITON_CACHE_DIR": f"{folder}/triton", "XDG_CACHE_HOME": f"{folder}/home"}
        # Python's own, which an installation has: not every machine lets it stand beside the sources.
        caches |= {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "PYTHONDONTWRITEBYTECODE": ""}
        environment = os.environ | caches | {"CUDA_VISIBLE_DEVICES": gpu}
        for job in jobs:
            limit_s = min(job.limit_s, end - time.monotonic())
            if limit_s < 10:
                print(f"{job.name}: no time left", flush=True)
                continue
            start = time.monotonic()
            command = job.command(Path(folder), out / f"{job.name}.json")
            word = _run(command, environment, limit_s)
            print(f"{job.name}: {word} after {time.monotonic() - start:.1f} s", flush=True)


def _run(command: list[str], environment: dict[str, str], limit_s: float) -> str:
    """In a session of its own, so that whatever it started ends with it."""
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        try:
            _, errors = running.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            return "cut off"
    if running.returncode:
        print(errors[-2000:], flush=True)
    return f"code {running.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(job.name for job in JOBS))
    parser.add_argument("--lane", type=int, choices=(0, 1), help="these jobs alone; default: both lanes")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for all")
    parser.add_argument("--out", type=Path, default=RESULTS / "table")
    arguments = parser.parse_args()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else _all()
    wanted, end = arguments.jobs.split(","), time.monotonic() + arguments.limit
    mine = [job for job in JOBS if job.name in wanted and arguments.lane in (None, job.lane)]
    order = sorted(mine, key=lambda job: wanted.index(job.name))
    arguments.out.mkdir(parents=True, exist_ok=True)
    lanes: list[list[Job]] = [[] for _ in gpus[:2]]
    for job in order:
        lanes[job.lane % len(lanes)].append(job)
    with ThreadPoolExecutor(len(lanes)) as pool:
        for done in [
            pool.submit(run_lane, lane, gpu, end, arguments.out.absolute())
            for lane, gpu in zip(lanes, gpus, strict=False)
        ]:
            done.result()


def _all() -> list[str]:
    asked = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True)
    return [str(i) for i in range(len(asked.stdout.splitlines()))]


if __name__ == "__main__":
    main()
