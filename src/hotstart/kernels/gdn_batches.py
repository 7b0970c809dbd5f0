"""How the CPU form of the chunked rule walks the prompts of a step: a bounded slab of chunks at a time.

Spans whose chunks fit into one slab together run as one batch.  Their chunks are ordered by index within the
sequence, longest sequence first, so that the chunks of one index are consecutive rows, and their sequences a prefix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Batch", "batch_of", "groups"]


def groups(lengths: Sequence[int], chunk_length: int, slab_chunks: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of spans: neighbours that share a slab, or one span with a slab or more of its own."""
    first = used = 0
    for i, length in enumerate(lengths):
        chunks = -(-length // chunk_length)
        if used and used + chunks > slab_chunks:
            yield first, i
            first, used = i, 0
        used += chunks
    if used:
        yield first, len(lengths)


@dataclass(frozen=True, slots=True)
class Batch:
    """Where the chunks of several spans lie: N spans of T tokens, R chunks of L tokens."""

    order: tuple[int, ...]  # spans with tokens, longest first
    counts: tuple[int, ...]  # how many chunks have index 0, 1, ...
    windows: Tensor  # [R * (W - 1 + L)]: rows of (conv states of the spans in order, oldest first | tokens)
    tails: Tensor  # [N * W]: rows of the same that are the new conv states
    tokens: Tensor  # [R * L]: tokens, T for padding
    places: Tensor  # [T]: where among R * L each token went


# The same for all layers of a step.
@lru_cache(maxsize=4)
def batch_of(lengths: tuple[int, ...], chunk_length: int, conv_width: int, device: torch.device) -> Batch:
    L, past = chunk_length, conv_width
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    order = tuple(sorted((i for i in range(len(lengths)) if lengths[i]), key=lambda i: (-lengths[i], i)))
    states, total = past * len(order), sum(lengths)
    counts: list[int] = []
    windows: list[int] = []
    tokens: list[int] = []
    places = [0] * total
    for c in range(-(-lengths[order[0]] // L)):
        alive = [(rank, i) for rank, i in enumerate(order) if lengths[i] > c * L]
        counts.append(len(alive))
        for rank, i in alive:
            row = len(tokens)
            for t in range(c * L, (c + 1) * L):
                real = t < lengths[i]
                tokens.append(starts[i] + t if real else total)
                if real:
                    places[starts[i] + t] = row + t - c * L
            # Padding repeats the span's own last token, so that no value comes from a neighbour.
            for t in range(c * L - past + 1, (c + 1) * L):
                last = min(t, lengths[i] - 1)
                windows.append(states + starts[i] + last if t >= 0 else rank * past + past + t)
    tails = [
        states + starts[i] + t if t >= 0 else rank * past + past + t
        for rank, i in enumerate(order)
        for t in range(lengths[i] - past, lengths[i])
    ]

    def index(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(order, tuple(counts), index(windows), index(tails), index(tokens), index(places))
