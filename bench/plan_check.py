"""Keep beside each other what `hotstart plan --gpu` foretells and what start-up found, for shapes on a real card.

python -m bench.plan_check [--folder FOLDER] [--only N,N]    start each of them, or these; their files are kept there
python -m bench.plan_check ROLE:FILE ...        files of `hotstart bench`, each fitted on ("fit") or not ("check")
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu_table import FLAGS
from bench.measure import RESULTS
from bench.shapes import model_config, write_folder
from hotstart.config.engine import EngineConfig
from hotstart.engine.predict import predict
from hotstart.kernels.gpus import parse_gpu

BARE = ("--device", "cuda", "--dtype", "bfloat16", "--load-format", "dummy", "--quiet", "--jit-monitor-mode", "error")
SMALL = (*BARE, "--max-model-len", "9216", "--max-num-batched-tokens", "8192")
GIB_32, GIB_80 = ("--device-memory-bytes", "32GiB"), ("--device-memory-bytes", "80GiB")
SEQS_256, SEQS_1024 = ("--max-num-seqs", "256"), ("--max-num-seqs", "1024")
STARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("check", "qwen3.5-9b", (*BARE, *GIB_32)),
    ("check", "qwen3.5-9b", SMALL + GIB_32 + SEQS_256),
    ("check", "qwen3.5-9b", FLAGS),
    ("check", "qwen3.5-27b", FLAGS),
    ("check", "qwen3.5-35b-a3b", (*BARE, *GIB_80)),
    ("check", "qwen3.5-35b-a3b", FLAGS),
    ("check", "qwen3.5-2b", BARE),
    ("fit", "next-small", SMALL + GIB_32),
    ("fit", "next-small", FLAGS),
    ("fit", "qwen3.5-4b", SMALL + SEQS_1024),
    ("fit", "qwen3.5-4b", FLAGS),
    ("fit", "qwen3.5-0.8b", FLAGS),
)


def row(role: str, found: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in found["options"].items() if name != "jit_monitor_mode"}
    plan = predict(EngineConfig(model="x", **options), model_config(found["model"]), "x", parse_gpu("h200")).expected
    assert plan is not None
    theirs = {line.name: line.num_bytes for line in plan.lines}
    lines = [
        {"name": line["name"], "foretold": theirs[line["name"]], "found": line["num_bytes"]}
        for line in found["plan"]["lines"]
        if line["name"] not in ("reserve", "unused")
    ]
    return {
        "model": found["model"],
        "role": role,
        "options": options,
        "lines": lines,
        "pages": {"foretold": plan.num_pages, "found": found["plan"]["num_pages"]},
        "slots": {"foretold": plan.num_slots, "found": found["plan"]["num_slots"]},
        "facts": {name: found[name] for name in ("command", "date", "device", "cuda", "versions", "commit")},
    }


def measure(folder: Path, only: Sequence[int]) -> None:
    found: list[str] = []
    for number in only:
        role, shape, flags = STARTS[number]
        out, start = folder / f"{number}-{shape}.json", time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            model = str(write_folder(shape, Path(temporary)))
            command = [sys.executable, "-m", "hotstart", "bench", "startup", model, *flags, f"--output={out}"]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        print(f"{out.name}: code {done.returncode} after {time.monotonic() - start:.1f} s", flush=True)
        if done.returncode:
            print(done.stderr[-2000:], flush=True)
            continue
        found.append(f"{role}:{out}")
        _write(found)


def _write(pairs: list[str]) -> None:
    found = [pair.split(":", 1) for pair in pairs]
    rows = [row(role, json.loads(Path(path).read_text())) for role, path in found]
    (RESULTS / "plan_check.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="ROLE:FILE")
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    numbers = ",".join(map(str, range(len(STARTS))))
    parser.add_argument("--only", default=numbers, metavar="N,N", help=f"default: {numbers}")
    arguments = parser.parse_args()
    if arguments.files:
        return _write(arguments.files)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        return measure(folder, [int(number) for number in arguments.only.split(",")])


if __name__ == "__main__":
    main()
