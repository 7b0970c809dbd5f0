"""A step's data as one buffer of 4-byte words, cut into named sections."""

import math
from collections.abc import Sequence
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

    Views cost more than the writing, so a sheet is made once for its sizes and then used again.  The first step of its
    sizes pays for it, so all tensors are cut in one call.
    """

    def __init__(self, words: NDArray[np.int32], image: Tensor, sections: Sequence[Section]) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}
        counts = [math.prod(shape) * (2 if dtype == "int64" else 1) for _, shape, dtype in sections]
        sizes = [size for count in counts for size in (count, -count % ALIGN_WORDS)]  # each, and what aligns the next
        end = sum(sizes[:-1])
        assert end <= len(words), f"the step's data take {end} words, the staging buffer has {len(words)}"
        tensors, at = image.view(torch.int32)[:end].split_with_sizes(sizes[:-1])[::2], 0
        for (name, shape, dtype), count, tensor in zip(sections, counts, tensors, strict=True):
            array = words[at : at + count]
            if dtype != "int32":
                array, tensor = array.view(dtype), tensor.view(_TORCH_TYPES[dtype])
            if len(shape) > 1:
                array, tensor = array.reshape(shape), tensor.view(shape)
            self.arrays[name], self.tensors[name] = array, tensor
            at += count + -count % ALIGN_WORDS
        self._words = words[:at]

    @property
    def num_bytes(self) -> int:
        return self._words.nbytes

    def clear(self) -> None:
        """All zero, as whoever writes it expects."""
        self._words.fill(0)
