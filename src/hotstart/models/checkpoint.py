"""Checkpoint: what the safetensors files of a folder hold, known from their headers before any weight is read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hotstart import log
from hotstart.errors import CheckpointError

__all__ = ["StoredTensor", "damaged", "open_checkpoint", "read_tensors"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_OTHER_FORMATS = {
    ".bin": "pickle files, which can run code",
    ".pt": "pickle files, which can run code",
    ".pth": "pickle files, which can run code",
    ".gguf": "GGUF files",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    name: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' name of it
    path: Path

    @property
    def is_float(self) -> bool:
        return self.dtype in _BYTES

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * _BYTES.get(self.dtype, 1)


def open_checkpoint(folder: Path) -> list[StoredTensor]:
    """Every tensor of the checkpoint, file by file.  Where there is an index, it decides which file to take."""
    if (folder / _INDEX).exists():
        return _from_index(folder)
    if (folder / _SINGLE).exists():
        return _read_header(folder / _SINGLE)
    found = sorted(path.suffix for path in folder.iterdir()) if folder.is_dir() else []
    for suffix, what in _OTHER_FORMATS.items():
        if suffix in found:
            raise CheckpointError(
                f"{folder} holds only {what}; hotstart reads safetensors: take that form of the checkpoint, "
                "or write it with transformers' save_pretrained"
            )
    raise CheckpointError(f"{folder} holds neither {_SINGLE} nor {_INDEX}; is the download complete?")


def read_tensors(tensors: list[StoredTensor]) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Tensors on the CPU, one at a time, mapped from their files rather than read ahead."""
    for path, group in groupby(tensors, key=lambda tensor: tensor.path):
        try:
            with safe_open(path, framework="pt") as file:
                for tensor in group:
                    yield tensor, file.get_tensor(tensor.name)
        except (SafetensorError, OSError) as error:
            raise damaged(path, error) from error


def _from_index(folder: Path) -> list[StoredTensor]:
    path = folder / _INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        files: dict[str, str] = dict(index["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors index: {error}; download it again") from error
    tensors: list[StoredTensor] = []
    surplus: list[str] = []
    for name in sorted(set(map(str, files.values()))):
        if Path(name).name != name:
            raise CheckpointError(f"{path} names the file {name!r}, expected one in the same folder")
        header = _read_header(folder / name)
        tensors += [tensor for tensor in header if files.get(tensor.name) == name]
        surplus += [tensor.name for tensor in header if tensor.name not in files]
    if missing := sorted(files.keys() - {tensor.name for tensor in tensors}):
        raise CheckpointError(
            f"{len(missing)} tensors are not in the files that {path} names for them: {shortened(missing)}; "
            "download the checkpoint again"
        )
    if surplus:
        log.warning("files hold tensors that their index does not name, left unread", tensors=shortened(surplus))
    return tensors


def _read_header(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return [StoredTensor(name, tuple(s.get_shape()), s.get_dtype(), path) for name, s in slices.items()]
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    if not path.exists():
        return CheckpointError(f"{path} does not exist, but the index names it; is the download complete?")
    return CheckpointError(f"{path} is damaged or no safetensors file ({error}); download it again")


def shortened(names: list[str], limit: int = 8) -> str:
    """A list for people to read."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
