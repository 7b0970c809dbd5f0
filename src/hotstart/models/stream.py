"""Stream: tensors of a checkpoint on their way to a GPU, as fast as its files can be read.

Several threads read pieces of the files into pinned memory, each into a buffer of its own, from where they are copied
while others are read.  A tensor that stands in the parameter as it stands in the file goes there directly, through a
small buffer on the device if it is of another dtype; any other is put together on the device first.
"""

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotstart.layers.fused import Piece
from hotstart.models.checkpoint import StoredTensor, damaged

__all__ = ["stream_tensors"]

PIECE_BYTES = 16 << 20
CAST_BYTES = 4 << 20  # a reader's buffer on the device, for tensors of another dtype than the parameter's
AHEAD_BYTES = 512 << 20  # of tensors under way, beside the one that is waited for
APART_BYTES = 192 << 20  # of those that are put together on the device first: beside one alone, no more than this
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class _Coming:
    """A tensor under way: its pieces, and what is to be done when all of them have been given to the device."""

    tensor: StoredTensor
    pieces: list[Future[None]]
    finish: Callable[[], None]
    apart_bytes: int  # beside the parameter, until it is finished


def stream_tensors(wanted: Sequence[tuple[StoredTensor, Piece]], device: torch.device) -> Iterator[StoredTensor]:
    """Fill each piece from its tensor; yields the tensors in their order, as they are done.  Raises CheckpointError."""
    under_way: deque[_Coming] = deque()
    ahead = apart = 0
    workers = max(1, min(8, (os.cpu_count() or 2) // 2))
    with _Files() as files, ThreadPoolExecutor(workers, "hotstart-read") as pool:
        readers = _Readers(files, device)
        for tensor, piece in wanted:
            apart_bytes = tensor.num_bytes if piece.plain is None else 0
            while under_way and (ahead > AHEAD_BYTES or (apart_bytes and apart + apart_bytes > APART_BYTES)):
                ahead -= under_way[0].tensor.num_bytes
                apart -= under_way[0].apart_bytes
                yield _landed(under_way.popleft())
            target, finish = _destination(tensor, piece, device)
            count = PIECE_BYTES // _DTYPES[tensor.dtype].itemsize
            starts = range(0, len(target), count)
            pieces = [pool.submit(readers.read, tensor, at, target[at : at + count]) for at in starts]
            under_way.append(_Coming(tensor, pieces, finish, apart_bytes))
            ahead += tensor.num_bytes
            apart += apart_bytes
        while under_way:
            yield _landed(under_way.popleft())
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the buffers are given back


def _landed(coming: _Coming) -> StoredTensor:
    try:
        for piece in coming.pieces:
            piece.result()
    except OSError as error:
        raise damaged(coming.tensor.path, error) from error
    coming.finish()
    return coming.tensor


def _destination(tensor: StoredTensor, piece: Piece, device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """Where the values go one after another, and what then remains to be done."""
    if piece.plain is not None:
        return piece.plain.view(-1), lambda: None
    whole = torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype], device=device)
    return whole.view(-1), lambda: piece.fill(whole)


class _Files:
    """Open files, and where the tensors in them begin."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[int, dict[str, int]]] = {}
        self._lock = threading.Lock()

    def find(self, tensor: StoredTensor) -> tuple[int, int]:
        with self._lock:
            if tensor.path not in self._open:
                self._open[tensor.path] = _open(tensor.path)
            opened = self._open[tensor.path]
        return opened[0], opened[1][tensor.name]

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for number, _begins in self._open.values():
            os.close(number)


def _open(path: Path) -> tuple[int, dict[str, int]]:
    """A safetensors file: 8 bytes that tell the header's length, the header, and what its offsets count from."""
    number = os.open(path, os.O_RDONLY)
    length = int.from_bytes(os.pread(number, 8, 0), "little")
    header: dict[str, Any] = json.loads(os.pread(number, length, 8))
    header.pop("__metadata__", None)
    return number, {name: 8 + length + one["data_offsets"][0] for name, one in header.items()}


@dataclass(slots=True)
class _Readers:
    files: _Files
    device: torch.device
    _own: threading.local = field(default_factory=threading.local)

    def read(self, tensor: StoredTensor, at: int, target: Tensor) -> None:
        """Values from number `at` of the tensor on.  In a worker's thread."""
        number, begin = self.files.find(tensor)
        dtype = _DTYPES[tensor.dtype]
        buffer, copied = self._buffer()
        if copied is not None:
            copied.synchronize()
        done, size, array = 0, len(target) * dtype.itemsize, buffer.numpy()
        while done < size:
            count = os.preadv(number, [array[done:size].data], begin + at * dtype.itemsize + done)
            if not count:
                raise OSError(f"it ends {size - done} bytes too early")
            done += count
        with torch.inference_mode():  # a thread has a mode of its own
            self._copy(buffer[:size].view(dtype), target)
        if copied is not None:
            copied.record(torch.cuda.current_stream(self.device))

    def _copy(self, values: Tensor, target: Tensor) -> None:
        if values.dtype == target.dtype:
            target.copy_(values, non_blocking=True)
            return
        # Torch would cast on the host.  All copies run on one stream, so the buffer is free again when it is written.
        if not hasattr(self._own, "cast"):
            self._own.cast = torch.empty(CAST_BYTES, dtype=torch.uint8, device=self.device)
        cast = self._own.cast.view(values.dtype)
        for at in range(0, len(values), len(cast)):
            part = values[at : at + len(cast)]
            target[at : at + len(part)] = cast[: len(part)].copy_(part, non_blocking=True)

    def _buffer(self) -> tuple[Tensor, torch.cuda.Event | None]:
        if not hasattr(self._own, "buffer"):
            is_gpu = self.device.type == "cuda"
            self._own.buffer = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=is_gpu)
            self._own.copied = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]  # torch's own
        return self._own.buffer, self._own.copied
