"""A step's data as one buffer of 4-byte words, cut into named sections."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, int32, int64

from hotstart.engine.limits import ALIGN_WORDS

__all__ = ["Sheet"]


class Sheet:
    """`take` sections, write into them, then `read` them all from the buffer's image on the device."""

    def __init__(self, words: NDArray[np.int32]) -> None:
        self._words = words
        self._names: list[tuple[str, bool]] = []
        self._sizes: list[int] = []  # in words: a section, the gap after it, the next section, ...
        self.size = 0

    def take(self, name: str, count: int, wide: bool = False) -> NDArray[np.int32]:
        """A zeroed section of `count` words, or of that many pairs of words if it is wide."""
        length = 2 * count if wide else count
        end = self.size + length
        gap = -end % ALIGN_WORDS
        assert end + gap <= len(self._words), f"the step's data exceed the staging buffer at {name}"
        section = self._words[self.size : end]
        section.fill(0)
        self._names.append((name, wide))
        self._sizes += (length, gap)
        self.size = end + gap
        return section

    def take_int64(self, name: str, count: int) -> NDArray[np.int64]:
        return self.take(name, count, wide=True).view(np.int64)

    def take_float32(self, name: str, count: int) -> NDArray[np.float32]:
        return self.take(name, count).view(np.float32)

    def read(self, image: Tensor) -> dict[str, Tensor]:
        """Sections as int32 or, if wide, int64 tensors; floats have to be viewed as such."""
        parts = image.view(int32)[: self.size].split_with_sizes(self._sizes)
        return {
            name: part.view(int64) if wide else part for (name, wide), part in zip(self._names, parts[::2], strict=True)
        }
