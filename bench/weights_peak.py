"""What loading takes of a GPU beside the weights: sharded checkpoints are written, then read by a start's own loader.

python -m bench.weights_peak [--folder FOLDER] [--out FILE]

Torch's view is the peak of what it allocated; the driver's what the card gave out, to anybody, looked at every half
millisecond.  The driver's holds what torch's allocator rounds up and keeps, too.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.device import facts
from bench.measure import RESULTS
from bench.shapes import SHAPES
from hotstart.config.model import read_model_config
from hotstart.kernels.backends import ops_for
from hotstart.models import build_model
from hotstart.models.qwen3_5 import Qwen35
from hotstart.models.weights import checkpoint_shapes, load_weights

__all__ = ["CASES", "LIMIT_BYTES", "Case", "measure", "write_checkpoint"]

LIMIT_BYTES = 256 << 20
SHARD_BYTES = 512 << 20
LOOK_S = 0.0005


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    shape: str
    fewer: dict[str, int]  # than the published shape has, so that a test can write it
    spelling: int  # 0: tensors stand as in the parameters; 1: interleaved by heads, experts one by one
    dtype: torch.dtype  # of the model; the checkpoint is bfloat16


CASES = (
    Case("flat, sharded", "qwen3.5-4b", {"num_hidden_layers": 8}, 0, torch.bfloat16),
    Case("flat, sharded, cast", "qwen3.5-4b", {"num_hidden_layers": 4}, 0, torch.float32),
    Case("by expert", "qwen3-next-80b-a3b", {"num_hidden_layers": 4, "num_experts": 48}, 1, torch.bfloat16),
    Case("by expert, cast", "qwen3-next-80b-a3b", {"num_hidden_layers": 4, "num_experts": 16}, 1, torch.float16),
)


def _model(case: Case, folder: Path) -> Qwen35:
    return build_model(read_model_config(folder), ops_for("triton"), case.dtype, torch.float32, num_positions=4096)


def write_checkpoint(case: Case, folder: Path) -> int:
    """config.json, shards and their index; returns the bytes of all tensors."""
    (folder / "config.json").write_text(json.dumps(SHAPES[case.shape] | case.fewer))
    shapes = checkpoint_shapes(_model(case, folder), case.spelling)
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, shape in shapes.items():
        if size > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][f"model.{name}"] = torch.empty(shape, dtype=torch.bfloat16).fill_(0.01)
        size += 2 * prod(shape)
        total += 2 * prod(shape)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file)
    names = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return total


@contextmanager
def _driver_peak() -> Iterator[list[int]]:
    """The most that the card had given out; known when the block is left."""
    seen, stop = [_given_out()], threading.Event()

    def look() -> None:
        while not stop.wait(LOOK_S):
            seen[0] = max(seen[0], _given_out())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def _given_out() -> int:
    free, card = torch.cuda.mem_get_info()
    return card - free


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Load the checkpoint of a folder.  The weights' bytes are those of the parameters, the rotary table among them."""
    model = _model(case, folder)
    device = torch.device("cuda", torch.cuda.current_device())

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).zero_()

    weights_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    allocate((1,), torch.float32)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    given_out, start = _given_out(), time.perf_counter()
    with _driver_peak() as peak:
        load_weights(model, folder, allocate, stream_to=device)
    seconds = time.perf_counter() - start
    return {
        "name": case.name,
        "shape": case.shape,
        "fewer": case.fewer,
        "dtype": str(case.dtype).removeprefix("torch."),
        "num_shards": len(list(folder.glob("*.safetensors"))),
        "weights_bytes": weights_bytes,
        "beside_torch_bytes": torch.cuda.max_memory_allocated() - allocated - weights_bytes,
        "beside_reserved_bytes": torch.cuda.max_memory_reserved() - reserved - weights_bytes,
        "beside_driver_bytes": peak[0] - given_out - weights_bytes,
        "load_s": round(seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS / "weights_peak_h200.json")
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            file_bytes = write_checkpoint(case, Path(folder))
            rows.append(measure(case, Path(folder)) | {"file_bytes": file_bytes})
        torch.cuda.empty_cache()
        print(rows[-1], flush=True)
    record = facts("python -m bench.weights_peak") | {"date": time.strftime("%Y-%m-%d"), "rows": rows}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
