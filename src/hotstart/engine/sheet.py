"""A step's data as one buffer of 4-byte words, cut into named sections."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotstart.engine.limits import ALIGN_WORDS

__all__ = ["Section", "Sheet"]

_TORCH_TYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


class Section(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: Literal["int32", "int64", "float32"] = "int32"


class Sheet:
    """The same words twice: as arrays on the host, to be written, and as tensors of their image on the device.

    Views cost more than the writing, so a sheet is made once for its sizes and then used again.
    """

    def __init__(self, words: NDArray[np.int32], image: Tensor, sections: Iterable[Section]) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}
        image_words, at = image.view(torch.int32), 0
        for name, shape, dtype in sections:
            end = at + math.prod(shape) * np.dtype(dtype).itemsize // 4
            assert end <= len(words), f"the step's data exceed the staging buffer at {name}"
            self.arrays[name] = words[at:end].view(dtype).reshape(shape)
            self.tensors[name] = image_words[at:end].view(_TORCH_TYPES[dtype]).view(shape)
            at = end + -end % ALIGN_WORDS
        self._words = words[: min(at, len(words))]

    @property
    def num_bytes(self) -> int:
        return self._words.nbytes

    def clear(self) -> None:
        """All zero, as whoever writes it expects."""
        self._words.fill(0)
