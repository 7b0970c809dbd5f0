"""How much torch's CUDA allocator takes from the driver for a series of tensors: its rules, without a GPU.

Tensors of up to 1 MiB come from segments of 2 MiB; up to 10 MiB from segments of 20 MiB; larger ones have segments of
their own, in steps of 2 MiB.  The smallest free block that is large enough is taken, and cut if enough remains.
Source: PyTorch 2.11, c10/cuda/CUDACachingAllocator.cpp.
"""

__all__ = ["Segments"]

_MIB = 1 << 20
_SMALL, _SMALL_SEGMENT = _MIB, 2 * _MIB
_MEDIUM, _MEDIUM_SEGMENT = 10 * _MIB, 20 * _MIB
_LARGE_STEP = 2 * _MIB
_ALIGN = 512

Place = tuple[int, int, int]  # size, segment, offset: blocks are ordered by size


class Segments:
    """`take` gives a block, `free` returns it; `reserved` is what the driver gave, `peak` the most of it."""

    def __init__(self) -> None:
        self.reserved = 0
        self.peak = 0
        self._num_segments = 0
        self._free: dict[bool, list[Place]] = {True: [], False: []}  # of the small pool, of the large one

    def take(self, num_bytes: int) -> Place:
        size = max(-(-num_bytes // _ALIGN) * _ALIGN, _ALIGN)
        is_small = size <= _SMALL
        blocks = self._free[is_small]
        block = min((one for one in blocks if one[0] >= size), default=None)
        if block is None:
            block = self._segment(size)
        else:
            blocks.remove(block)
        length, segment, offset = block
        rest = length - size
        if rest >= _ALIGN if is_small else rest > _SMALL:
            blocks.append((rest, segment, offset + size))
            length = size
        return (length, segment, offset)

    def free(self, block: Place) -> None:
        """Together with free neighbours it is one block again."""
        length, segment, offset = block
        blocks = self._pool_of(block)
        for other in [one for one in blocks if one[1] == segment]:
            if other[2] + other[0] == offset:
                blocks.remove(other)
                length, offset = length + other[0], other[2]
            elif offset + length == other[2]:
                blocks.remove(other)
                length += other[0]
        blocks.append((length, segment, offset))

    def _segment(self, size: int) -> Place:
        if size <= _SMALL:
            length = _SMALL_SEGMENT
        elif size < _MEDIUM:
            length = _MEDIUM_SEGMENT
        else:
            length = -(-size // _LARGE_STEP) * _LARGE_STEP
        self.reserved += length
        self.peak = max(self.peak, self.reserved)
        self._num_segments += 1
        # Even numbers are small segments, odd ones large.
        return (length, 2 * self._num_segments + (size > _SMALL), 0)

    def _pool_of(self, block: Place) -> list[Place]:
        return self._free[block[1] % 2 == 0]
