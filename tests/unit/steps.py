"""StepInputs made by hand, for tests of ops."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import torch

from hotstart.kernels.step import DecodeInputs, EndInputs, PrefillInputs, StepInputs

__all__ = ["Row", "make_step", "moved"]


@dataclass(frozen=True)
class Row:
    """A sequence's part of a step: positions [start, start + length)."""

    length: int
    start: int = 0
    read: int = -1
    write: int = 0
    pages: tuple[int, ...] = ()


def make_step(
    decodes: list[Row],
    prefills: list[Row],
    page_size: int = 4,
    chunk_length: int = 64,
    padding: int = 0,
    ends_alone: bool = False,
) -> StepInputs:
    """Tokens are zeros; `padding` tokens follow the real ones, and as many padding rows follow the decoding ones and
    the ends."""
    rows = [*decodes, *prefills]
    num_tokens = sum(row.length for row in rows)
    width = max([1, *(len(row.pages) for row in rows)])
    positions = [p for row in rows for p in range(row.start, row.start + row.length)]
    kv = [
        row.pages[p // page_size] * page_size + p % page_size if row.pages else -1
        for row in rows
        for p in range(row.start, row.start + row.length)
    ]

    def ints(values: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)

    def tables(some: list[Row]) -> torch.Tensor:
        return torch.tensor([[*r.pages, *[0] * (width - len(r.pages))] for r in some], dtype=torch.int32).view(
            -1, width
        )

    blank = Row(length=0, read=-1, write=-1)
    padded = [*decodes, *[blank] * (padding if decodes else 0)]
    decode = DecodeInputs(
        num_sequences=len(decodes),
        max_context=max([0, *(r.start + 1 for r in decodes)]),
        contexts=tuple(r.start + 1 for r in decodes),
        reads=tuple(r.read for r in padded),
        writes=tuple(r.write for r in padded),
        page_table=tables(padded),
        context_lens=ints([r.start + r.length for r in padded]),
        read_slots=ints([r.read for r in padded]),
        write_slots=ints([r.write for r in padded]),
    )
    offsets = torch.tensor([len(decodes), *(r.length for r in prefills)]).cumsum(0)
    chunks = [
        (i, int(offsets[i]) + first, min(chunk_length, row.length - first), first // chunk_length)
        for i, row in enumerate(prefills)
        for first in range(0, row.length, chunk_length)
    ]
    prefill = PrefillInputs(
        num_sequences=len(prefills),
        first_token=len(decodes),
        lengths=tuple(r.length for r in prefills),
        contexts=tuple(r.start + r.length for r in prefills),
        reads=tuple(r.read for r in prefills),
        writes=tuple(r.write for r in prefills),
        num_chunks=len(chunks),
        chunk_length=chunk_length,
        cu_seqlens=offsets.int(),
        context_lens=ints([r.start + r.length for r in prefills]),
        page_table=tables(prefills),
        read_slots=ints([r.read for r in prefills]),
        write_slots=ints([r.write for r in prefills]),
        chunks=torch.tensor(chunks, dtype=torch.int32).view(-1, 4),
        cu_chunks=torch.tensor([0, *(-(-r.length // chunk_length) for r in prefills)]).cumsum(0).int(),
    )
    end_rows = [sum(r.length for r in rows[: i + 1]) - 1 for i in range(len(rows))]
    end_decode = DecodeInputs(
        num_sequences=len(rows),
        max_context=max([0, *(r.start + r.length for r in rows)]),
        contexts=tuple(r.start + r.length for r in rows),
        reads=(),
        writes=(),
        page_table=tables([*rows, *[blank] * padding]),
        context_lens=ints([*(r.start + r.length for r in rows), *[0] * padding]),
        read_slots=ints([]),
        write_slots=ints([]),
    )
    ends = EndInputs(
        num_tokens=len(rows),
        rows=ints(end_rows + [0] * padding),
        positions=ints([positions[i] for i in end_rows] + [0] * padding),
        kv_index=ints([kv[i] for i in end_rows] + [-1] * padding, torch.int64),
        decode=end_decode,
        prefill=replace(
            prefill, num_sequences=0, lengths=(), contexts=(), reads=(), writes=(), page_table=prefill.page_table[:0]
        ),
    )
    return StepInputs(
        num_tokens=num_tokens,
        token_ids=torch.zeros(num_tokens + padding, dtype=torch.int32),
        positions=ints(positions + [0] * padding),
        kv_index=ints(kv + [-1] * padding, torch.int64),
        decode=decode,
        prefill=prefill,
        ends=ends,
        ends_alone=ends_alone,
        logit_rows=ints(list(range(num_tokens))),
    )


def moved(thing: Any, device: torch.device | str) -> Any:
    """The same step, or weights, with its tensors on `device`."""
    if isinstance(thing, torch.Tensor):
        return thing.to(device)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: moved(getattr(thing, f.name), device) for f in dataclasses.fields(thing)}
        return dataclasses.replace(thing, **fields)
    return thing
