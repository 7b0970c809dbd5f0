"""DecodeGraphs: a step of answers alone, captured once for each padded size and replayed as a whole.

A graph repeats launches with their addresses.  That holds because a step's data always stand at the same place of the
staging image for a given size, caches and weights never move, and kernels read contexts, pages and slots from tensors.
Graphs share one pool of memory, largest first, so that the smaller ones fit into what the largest took.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hotstart.engine.device import Device

__all__ = ["DecodeGraphs"]

TRIAL_GRAPHS = 4
LEAST_GRAPH_BYTES = (
    1 << 20
)  # the driver takes memory in pieces: a graph that seems to cost nothing may be the next's turn


class DecodeGraphs:
    def __init__(self, sizes: tuple[int, ...], hidden_size: int, dtype: torch.dtype, device: Device) -> None:
        self.sizes = tuple(sorted(sizes, reverse=True))
        self._device = device.torch_device
        # Every graph leaves its hidden states here, where the sampler reads them.
        self._hidden = device.arena.allocate("graph outputs", (self.sizes[0], hidden_size), dtype)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, size: int, run: Callable[[], Tensor]) -> None:
        """Record what `run` launches; it gives hidden states of `size` rows.  It has run before, outside of a graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._hidden[:size].copy_(run())
        self._graphs[size] = graph

    def replay(self, size: int) -> Tensor | None:
        """Hidden states of a step whose data are in place; None if there is no graph of this size."""
        graph = self._graphs.get(size)
        if graph is None:
            return None
        graph.replay()
        return self._hidden[:size]

    def trial(self, capture: Callable[[int], None]) -> int:
        """Bytes that all graphs will take: the largest and a few more are captured, measured, and thrown away."""
        before = self._taken()
        capture(self.sizes[0])
        first = self._taken() - before
        more = self.sizes[1:TRIAL_GRAPHS]
        for size in more:
            capture(size)
        each = max((self._taken() - before - first) // max(len(more), 1), LEAST_GRAPH_BYTES)
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return first + each * (len(self.sizes) - 1)

    def _taken(self) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        free, card = torch.cuda.mem_get_info(self._device)
        return card - free
