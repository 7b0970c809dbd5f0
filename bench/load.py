"""Weights from a disk: a checkpoint of a shape is written, then an engine starts with it.

python -m bench.load [--model qwen3.5-4b] [--folder FOLDER] [--out FILE]

Twice the checkpoint lies in the page cache when it is read, so what is measured is all that the machine does beside its
disk; then once it does not.  Beside it: bytes a second of reading the same file, and of copying pinned memory to the
device.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.device import facts
from bench.gpu_table import FLAGS
from bench.measure import RESULTS, seconds
from bench.shapes import model_config, write_folder
from hotstart.kernels.backends import ops_for
from hotstart.models import build_model
from hotstart.models.weights import checkpoint_shapes

PIECE = 64 << 20


def write_checkpoint(name: str, folder: Path) -> Path:
    """FOLDER/NAME with config.json and one file of weights, all of them small."""
    path = write_folder(name, folder)
    model = build_model(model_config(name), ops_for("torch"), torch.bfloat16, torch.float32, num_positions=64)
    shapes = checkpoint_shapes(model)
    save_file(
        {key: torch.full(shape, 0.01, dtype=torch.bfloat16) for key, shape in shapes.items()},
        path / "model.safetensors",
    )
    return path


def read_rate(path: Path, threads: int) -> float:
    size = path.stat().st_size
    file = os.open(path, os.O_RDONLY)

    def read(worker: int) -> None:
        buffer = bytearray(PIECE)
        for at in range(worker * PIECE, size, threads * PIECE):
            os.preadv(file, [buffer], at)

    with ThreadPoolExecutor(threads) as pool:
        taken = seconds(lambda: list(pool.map(read, range(threads))))
    os.close(file)
    return size / taken


def forget(path: Path) -> None:
    """Out of the page cache: the next to read it has to wait for the disk."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def copy_rate() -> float:
    source = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")

    def copy() -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    copy()
    return len(source) / seconds(copy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3.5-4b")
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS / "load_h200.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        checkpoint = write_checkpoint(arguments.model, Path(temporary))
        weights, out = checkpoint / "model.safetensors", Path(temporary, "found.json")
        found: dict[str, Any] = facts(f"python -m bench.load --model {arguments.model}") | {
            "date": time.strftime("%Y-%m-%d"),
            "bytes": weights.stat().st_size,
            "read_bytes_per_s": {f"{threads} threads": read_rate(weights, threads) for threads in (1, 8)},
            "copy_bytes_per_s": copy_rate(),
            "starts": [],
        }
        flags = [flag for flag in FLAGS if flag not in ("--load-format", "dummy")]
        for is_cached in (True, True, False):
            if not is_cached:
                forget(weights)
                found["read_bytes_per_s"]["8 threads, from the disk"] = read_rate(weights, 8)
                forget(weights)
            command = [sys.executable, "-m", "hotstart", "bench", "startup", str(checkpoint), *flags, f"--output={out}"]
            subprocess.run(command, check=True)
            run = json.loads(out.read_text())
            start = {"is_cached": is_cached, "process_to_ready_s": run["process_to_ready_s"], **run["startup"]}
            found["starts"].append(start)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
            print(start, found["read_bytes_per_s"], flush=True)


if __name__ == "__main__":
    main()
