"""StepGraphs: steps of answers alone, and short prompts alone, captured once for each size and replayed as a whole.

A graph repeats launches with their addresses.  That holds because a step's data always stand at the same place of the
staging image for a given size, caches and weights never move, and kernels read contexts, pages and slots from tensors.
Graphs share one pool of memory, largest first, so that the smaller ones fit into what the largest took.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hotstart.engine.device import Arena, Recorder
from hotstart.engine.inputs import GraphKey

__all__ = ["GraphBytes", "StepGraphs"]

TRIAL_GRAPHS = 4
LEAST_GRAPH_BYTES = 1 << 20  # the driver takes memory in pieces: one that seems to cost nothing may be the next's turn


class GraphBytes(NamedTuple):
    """Of a device."""

    bound: int = 0  # of all graphs
    kept: int = 0  # of these, what is still taken after the trial: the driver keeps it for the next captures


class StepGraphs:
    def __init__(
        self,
        keys: Sequence[GraphKey],
        max_rows: int,
        hidden_size: int,
        dtype: torch.dtype,
        arena: Arena,
        recorder: Recorder,
    ) -> None:
        """max_rows: of the hidden states that any of these steps leaves."""
        self.keys = tuple(sorted(keys, reverse=True))  # prompts, which take more, come first
        self._recorder = recorder
        # Every graph leaves its hidden states here, where the sampler reads them.
        self._hidden = arena.allocate("graph outputs", (max_rows, hidden_size), dtype)
        self._graphs: dict[GraphKey, tuple[Callable[[], object], Tensor]] = {}
        self._draws: dict[GraphKey, tuple[Callable[[], object], Tensor]] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, key: GraphKey, run: Callable[[], Tensor], draw: Callable[[Tensor], Tensor | None]) -> None:
        """Record what `run` launches, which gives hidden states, and what `draw` does, which makes tokens of them.

        They are two graphs, for a step may want more of its hidden states.  Both have run before, outside of a graph.
        """
        left: list[Tensor] = []

        def keep() -> None:
            hidden = run()
            left.append(self._hidden[: hidden.shape[0]])
            left[0].copy_(hidden)

        graph = self._recorder.record(keep)
        self._graphs[key] = graph, left[0]
        drawn: list[Tensor | None] = []
        graph = self._recorder.record(lambda: drawn.append(draw(left[0])))
        assert drawn[0] is not None, f"a captured step draws tokens: {key}"
        self._draws[key] = graph, drawn[0]

    def replay(self, key: GraphKey) -> Tensor | None:
        """Hidden states of a step whose data are in place; None if there is no graph of this key."""
        found = self._graphs.get(key)
        if found is None:
            return None
        graph, hidden = found
        graph()
        return hidden

    def replay_draw(self, key: GraphKey, num_rows: int) -> Tensor | None:
        """Tokens of the hidden states that the step has just left; None if it was not captured with as many rows."""
        graph, tokens = self._draws[key]
        if len(tokens) != num_rows:
            return None
        graph()
        return tokens

    def trial(self, capture: Callable[[GraphKey], None]) -> GraphBytes:
        """What all graphs will take: the largest and a few more are captured, measured, and thrown away."""
        largest = [max(kind) for kind in self._kinds() if kind]
        more = [key for kind in self._kinds() for key in kind[1 : 1 + TRIAL_GRAPHS // 2]]
        taken = [self._recorder.taken_bytes()]
        for keys in (largest, more):
            for key in keys:
                capture(key)
            taken.append(self._recorder.taken_bytes())
        # Where the driver does not tell processes apart, another may have given memory back meanwhile.
        of_largest, of_more = (max(after - before, 0) for before, after in pairwise(taken))
        each = of_more // max(len(more), 1)
        self._graphs.clear()
        self._draws.clear()
        self._recorder.forget()
        bound = of_largest + max(each, LEAST_GRAPH_BYTES) * (len(self.keys) - len(largest))
        return GraphBytes(bound, min(max(self._recorder.taken_bytes() - taken[0], 0), bound))

    def _kinds(self) -> tuple[list[GraphKey], list[GraphKey]]:
        return [key for key in self.keys if key.is_prompt], [key for key in self.keys if not key.is_prompt]
