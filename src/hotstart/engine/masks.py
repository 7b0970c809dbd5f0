"""MaskBuffer: the bits of the tokens that may come, for the rows of a step that are limited to some.

The buffer exists before anything is sized.  What a request names once is copied while the step is built; what its
grammar says is computed beside the forward pass, and waited for when the tokens are sampled.
"""

from collections.abc import Callable
from concurrent.futures import Future, wait

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotstart.engine.device import Device
from hotstart.engine.limits import StepLimits

__all__ = ["FillMasks", "MaskBuffer"]

# (sequences and rows, buffer) -> a future that ends when each of these sequences' masks stands in its row
FillMasks = Callable[[list[tuple[int, int]], NDArray[np.int32]], Future[None]]


class MaskBuffer:
    """For each step: `clear`, `add` rows; `start` when all tokens before are known, `upload` before masks are read.

    `rows` gives views at any time.
    """

    def __init__(self, limits: StepLimits, device: Device, fill: FillMasks | None) -> None:
        self._width = limits.mask_words
        self._fill = fill
        self._staging = device.staging(4 * limits.max_num_seqs * self._width)
        self._image = self._staging.image.view(torch.int32).view(limits.max_num_seqs, self._width)
        self._sequences: list[tuple[int, int]] = []
        self._filling: Future[None] | None = None
        self._count = 0

    def clear(self) -> None:
        if self._filling is not None:  # of a step that failed before it read its masks: it still writes here
            wait([self._filling])
        self._sequences = []
        self._filling = None
        self._count = 0

    def add(self, source: bytes | int) -> int:
        """The row of these bits, or of the mask of this sequence's grammar."""
        if not self._count:
            self._buffer = self._staging.buffer().view(np.int32).reshape(-1, self._width)
        row = self._count
        self._count += 1
        if isinstance(source, int):
            self._sequences.append((source, row))
        else:
            line = self._buffer[row].view(np.uint8)
            line[: len(source)] = np.frombuffer(source, dtype=np.uint8)
            line[len(source) :] = 0
        return row

    @property
    def has_grammars(self) -> bool:
        return bool(self._sequences)

    def start(self) -> None:
        if self._sequences:
            assert self._fill is not None, "a step of sequences with grammars, where nobody knows any"
            self._filling = self._fill(self._sequences, self._buffer)

    def rows(self, first: int, count: int) -> Tensor:
        return self._image[first : first + count]

    def upload(self) -> None:
        if self._filling is not None:
            filling, self._filling = self._filling, None
            filling.result()
        if self._count:
            self._staging.upload(4 * self._width * self._count)
