"""The last token of every span, as a step of answers alone: all that a step's last layer computes, as a rule."""

import numpy as np
import torch
from torch import Tensor

from hotstart.engine.plan import Span, StepPlan
from hotstart.engine.sheet import Section
from hotstart.kernels.step import DecodeInputs, EndInputs, PrefillInputs

__all__ = ["end_inputs", "end_sections", "no_ends", "no_prompts", "write_ends"]


def end_sections(num_rows: int) -> tuple[Section, ...]:
    return (
        Section("end_kv_index", (num_rows,), "int64"),
        Section("end_rows", (num_rows,)),
        Section("end_positions", (num_rows,)),
        Section("end_contexts", (num_rows,)),
    )


def write_ends(arrays: dict[str, np.ndarray], plan: StepPlan) -> None:
    """The sections are zero, and the step's tokens are written.  A row of padding has a context of 0."""
    rows = np.cumsum([span.length for span in plan.spans]) - 1
    real = len(rows)
    arrays["end_kv_index"][:real] = arrays["kv_index"][rows]
    arrays["end_kv_index"][real:] = -1
    arrays["end_rows"][:real] = rows
    arrays["end_positions"][:real] = arrays["positions"][rows]
    arrays["end_contexts"][:real] = arrays["positions"][rows] + 1


def end_inputs(image: dict[str, Tensor], spans: tuple[Span, ...], nothing: PrefillInputs) -> EndInputs:
    """Row i of the page tables is that of span i."""
    contexts = tuple([span.start + span.length for span in spans])
    return EndInputs(
        num_tokens=len(spans),
        rows=image["end_rows"],
        positions=image["end_positions"],
        kv_index=image["end_kv_index"],
        decode=DecodeInputs(
            num_sequences=len(spans),
            max_context=max(contexts, default=0),
            contexts=contexts,
            reads=(),
            writes=(),
            page_table=image["pages"] if spans else nothing.page_table,
            context_lens=image["end_contexts"],
            read_slots=nothing.read_slots,
            write_slots=nothing.write_slots,
        ),
        prefill=nothing,
    )


def no_ends(image: Tensor, nothing: PrefillInputs) -> EndInputs:
    """Of a step whose spans have one token each: its last layer is as its others."""
    none = image[:0].view(torch.int32)
    names = ("end_rows", "end_positions", "end_contexts")
    return end_inputs({**dict.fromkeys(names, none), "end_kv_index": none.long()}, (), nothing)


def no_prompts(image: Tensor, chunk_length: int) -> PrefillInputs:
    none = image[:0].view(torch.int32)
    return PrefillInputs(
        num_sequences=0,
        first_token=0,
        lengths=(),
        contexts=(),
        reads=(),
        writes=(),
        num_chunks=0,
        chunk_length=chunk_length,
        cu_seqlens=none,
        context_lens=none,
        page_table=none.view(0, 1),
        read_slots=none,
        write_slots=none,
        chunks=none.view(0, 4),
        cu_chunks=none,
    )
