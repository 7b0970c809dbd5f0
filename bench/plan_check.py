"""Keep beside each other what `hotstart plan --gpu` foretells and what start-up found, for shapes on a real card.

python -m bench.plan_check [--folder FOLDER]    start each of them, one after the other; their files are kept there
python -m bench.plan_check ROLE:FILE ...        files of `hotstart bench`, each fitted on ("fit") or not ("check")
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu_table import FLAGS
from bench.measure import RESULTS
from bench.shapes import model_config, write_folder
from hotstart.config.engine import EngineConfig
from hotstart.engine.predict import predict
from hotstart.kernels.gpus import parse_gpu

SMALL = ("--device", "cuda", "--dtype", "bfloat16", "--load-format", "dummy", "--max-model-len", "9216", "--quiet")
SMALL += ("--max-num-batched-tokens", "8192", "--jit-monitor-mode", "error")
GIB_32 = ("--device-memory-bytes", "32GiB")
STARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("check", "qwen3.5-9b", SMALL + GIB_32),
    ("fit", "next-small", SMALL + GIB_32),
    ("fit", "qwen3.5-4b", (*SMALL, "--max-num-seqs", "1024")),
    ("check", "qwen3.5-9b", FLAGS),
    ("fit", "next-small", FLAGS),
    ("check", "qwen3.5-27b", FLAGS),
    ("check", "qwen3.5-35b-a3b", FLAGS),
    ("fit", "qwen3.5-0.8b", FLAGS),
    ("check", "qwen3.5-4b", FLAGS),
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
        "facts": {name: found[name] for name in ("command", "date", "device", "cuda", "versions")},
    }


def measure(folder: Path) -> None:
    found: list[str] = []
    for number, (role, shape, flags) in enumerate(STARTS):
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
    arguments = parser.parse_args()
    if arguments.files:
        return _write(arguments.files)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        return measure(folder)


if __name__ == "__main__":
    main()
