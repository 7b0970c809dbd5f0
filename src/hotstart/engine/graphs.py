"""DecodeGraphs: a step of answers alone, captured once for each padded size and replayed as a whole.

A graph repeats launches with their addresses.  That holds because a step's data always stand at the same place of the
staging image for a given size, caches and weights never move, and kernels read contexts, pages and slots from tensors.
Graphs share one pool of memory, largest first, so that the smaller ones fit into what the largest took.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hotstart.engine.device import Arena, Recorder

__all__ = ["DecodeGraphs"]

TRIAL_GRAPHS = 4
LEAST_GRAPH_BYTES = 1 << 20  # the driver takes memory in pieces: one that seems to cost nothing may be the next's turn


class DecodeGraphs:
    def __init__(
        self, sizes: tuple[int, ...], hidden_size: int, dtype: torch.dtype, arena: Arena, recorder: Recorder
    ) -> None:
        self.sizes = tuple(sorted(sizes, reverse=True))
        self._recorder = recorder
        # Every graph leaves its hidden states here, where the sampler reads them.
        self._hidden = arena.allocate("graph outputs", (self.sizes[0], hidden_size), dtype)
        self._graphs: dict[int, Callable[[], object]] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, size: int, run: Callable[[], Tensor]) -> None:
        """Record what `run` launches; it gives hidden states of `size` rows.  It has run before, outside of a graph."""
        self._graphs[size] = self._recorder.record(lambda: self._hidden[:size].copy_(run()))

    def replay(self, size: int) -> Tensor | None:
        """Hidden states of a step whose data are in place; None if there is no graph of this size."""
        graph = self._graphs.get(size)
        if graph is None:
            return None
        graph()
        return self._hidden[:size]

    def trial(self, capture: Callable[[int], None]) -> int:
        """Bytes that all graphs will take: the largest and a few more are captured, measured, and thrown away."""
        before = self._recorder.taken_bytes()
        capture(self.sizes[0])
        first = self._recorder.taken_bytes() - before
        more = self.sizes[1:TRIAL_GRAPHS]
        for size in more:
            capture(size)
        each = (self._recorder.taken_bytes() - before - first) // max(len(more), 1)
        self._graphs.clear()
        self._recorder.forget()
        return first + max(each, LEAST_GRAPH_BYTES) * (len(self.sizes) - 1)
