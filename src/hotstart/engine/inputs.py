"""StepPlan -> tensors: everything one step needs is written into one host buffer, and copied to the device once.

The buffer is cut into sections of 4-byte words, each section 16-byte aligned, in the same way for all steps of the same
sizes.  A step's tensors are views of the image on the device and live until the next step is built.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hotstart.engine.device import Device
from hotstart.engine.ends import end_inputs, end_sections, no_ends, no_prompts, write_ends
from hotstart.engine.limits import StepLimits
from hotstart.engine.masks import FillMasks, MaskBuffer
from hotstart.engine.page_rows import PageRows
from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Span, StepPlan
from hotstart.engine.rows import PromptRows, RowList, SampleRows, row_sections
from hotstart.engine.sheet import Section, Sheet
from hotstart.engine.sizes import prompt_rungs
from hotstart.kernels.step import DecodeInputs, PrefillInputs, StepInputs

__all__ = ["BuiltStep", "GraphKey", "InputBuilder"]

MAX_SHEETS = 256


class GraphKey(NamedTuple):
    """Steps of one key are launched alike, whoever is in them."""

    is_prompt: bool  # one prompt alone; otherwise answers alone
    tokens: int  # with padding


@dataclass(frozen=True, slots=True)
class BuiltStep:
    inputs: StepInputs
    samples: SampleRows
    prompts: PromptRows | None
    masks: MaskBuffer  # to be started, and uploaded before tokens are sampled
    reads_last_tokens: bool  # host: a decode span's token is still on the device
    graph_key: GraphKey | None = None  # None: the step is like few others, or its device captures nothing

    @property
    def draws_alone(self) -> bool:
        """Tokens are all that its logits are for, and nothing but the draw's numbers bears on them."""
        samples = self.samples
        if not samples.slabs or samples.logprobs is not None or samples.records is not None or self.prompts is not None:
            return False
        return all(slab.grammar is None and slab.edits is None for slab in samples.slabs)


class InputBuilder:
    def __init__(self, limits: StepLimits, device: Device, fill_masks: FillMasks | None = None) -> None:
        self.limits = limits
        self.rungs = device.token_rungs(limits.max_num_batched_tokens)
        self.decode_rungs = device.decode_rungs(limits.max_num_seqs)
        self.prompt_rungs = prompt_rungs(self.rungs, limits.max_model_len) if self.decode_rungs else ()
        self.row_rungs = device.row_rungs(limits.slab_rows)
        self._staging = device.staging(limits.staging_bytes(self.rungs, self.row_rungs))
        self._masks = MaskBuffer(limits, device, fill_masks)
        self._pages = PageRows(limits.num_slots, limits.table_width)
        self._sheets: dict[tuple[int, _Sizes], Sheet] = {}
        self._no_prompts = no_prompts(self._staging.image, limits.chunk_length)
        self._no_ends = no_ends(self._staging.image, self._no_prompts)

    def rung(self, num_tokens: int) -> int:
        return self.rungs[bisect_left(self.rungs, num_tokens)]

    def decode_rung_of(self, num_sequences: int) -> int:
        return self.decode_rungs[bisect_left(self.decode_rungs, num_sequences)]

    def graph_keys(self) -> list[GraphKey]:
        """Of all steps that can be captured."""
        answers = [GraphKey(False, rung) for rung in self.decode_rungs]
        return answers + [GraphKey(True, rung) for rung in self.prompt_rungs]

    def _padded_ends(self, num_spans: int) -> int:
        """A size that start-up has run: products with so many rows are those of as many answers."""
        return self.decode_rung_of(num_spans) if self.decode_rungs else self.rung(num_spans)

    def build(self, plan: StepPlan) -> BuiltStep:
        num_tokens, num_decodes = plan.num_tokens, plan.num_decodes
        decodes, prefills = plan.spans[:num_decodes], plan.spans[num_decodes:]
        self._masks.clear()
        rows = RowList(plan, self.limits.slab_rows, self.row_rungs, self.limits.num_slots, self._masks)
        # Answers alone are padded to a size of their own, so that the step can have been captured.
        decode_rung = None if prefills or not self.decode_rungs else self.decode_rung_of(num_decodes)
        num_chunks = sum(-(-span.length // self.limits.chunk_length) for span in prefills)
        num_ends = self._padded_ends(len(plan.spans)) if rows.ends_alone else 0
        padded = decode_rung or self.rung(num_tokens)
        sheet = self._sheet(
            _Sizes(
                tokens=padded,
                decodes=decode_rung or num_decodes,
                prefills=len(prefills),
                ends=num_ends,
                chunks=num_chunks,
                samples=rows.num_samples,
                prompts=rows.num_prompts,
                edit_words=rows.num_edit_words,
            )
        )
        sheet.clear()
        arrays, image = sheet.arrays, sheet.tensors
        arrays["kv_index"][num_tokens:] = -1
        self._write_decodes(arrays, decodes)
        if prefills:
            self._write_prefills(arrays, prefills, num_decodes)
        if num_ends:
            write_ends(arrays, plan)
        rows.write(arrays)
        self._staging.upload(sheet.num_bytes)
        return BuiltStep(
            inputs=StepInputs(
                num_tokens=num_tokens,
                token_ids=image["token_ids"],
                positions=image["positions"],
                kv_index=image["kv_index"],
                decode=_decode_inputs(image, decodes, together=not prefills),
                prefill=_prefill_inputs(image, prefills, num_decodes, num_chunks, self.limits.chunk_length)
                if prefills
                else self._no_prompts,
                ends=end_inputs(image, plan.spans, self._no_prompts) if num_ends else self._no_ends,
                ends_alone=rows.ends_alone,
                logit_rows=image["logit_rows"],
            ),
            samples=rows.sample_rows(image),
            prompts=rows.prompt_rows(image),
            masks=self._masks,
            reads_last_tokens=any(span.token_ids[0] == IN_FLIGHT for span in decodes),
            graph_key=self._graph_key(len(plan.spans), decode_rung, padded, num_chunks, ends_alone=rows.ends_alone),
        )

    def _graph_key(
        self, num_spans: int, decode_rung: int | None, padded: int, num_chunks: int, *, ends_alone: bool
    ) -> GraphKey | None:
        if decode_rung is not None:
            return GraphKey(False, decode_rung)
        # How many chunks there are decides what is launched; nothing else of a prompt does.
        alike = num_spans == 1 and ends_alone and num_chunks == -(-padded // self.limits.chunk_length)
        return GraphKey(True, padded) if alike and padded in self.prompt_rungs else None

    def _sheet(self, sizes: "_Sizes") -> Sheet:
        words = self._staging.buffer()
        key = id(words), sizes  # the staging has few buffers, and keeps them
        sheet = self._sheets.get(key)
        if sheet is None:
            if len(self._sheets) == MAX_SHEETS:
                self._sheets.clear()
            sections = _sections(sizes, self.limits.table_width)
            sheet = self._sheets[key] = Sheet(words.view(np.int32), self._staging.image, sections)
        return sheet

    def _write_decodes(self, arrays: "_Arrays", spans: tuple[Span, ...]) -> None:
        """Rows of padding have a context of 0 and no slots."""
        real, size = len(spans), self.limits.page_size
        for name in ("decode_reads", "decode_writes"):
            arrays[name][real:] = NO_SLOT
        if not spans:
            return
        columns = np.array(
            [
                (s.token_ids[0], s.start, s.pages[-1] * size + s.start % size, s.start + 1, s.read_slot, s.write_slot)
                for s in spans
            ]
        )
        names = ("token_ids", "positions", "kv_index", "decode_contexts", "decode_reads", "decode_writes")
        for name, column in zip(names, columns.T, strict=True):
            arrays[name][:real] = column
        self._pages.write(arrays["pages"], spans)

    def _write_prefills(self, arrays: "_Arrays", spans: tuple[Span, ...], first_span: int) -> None:
        size, chunk = self.limits.page_size, self.limits.chunk_length
        cu_seqlens, cu_chunks, table = arrays["cu_seqlens"], arrays["cu_chunks"], arrays["chunks"]
        cu_seqlens[0] = at = first_span  # the spans before it have one token each
        num_chunks = 0
        for i, span in enumerate(spans):
            end, where = at + span.length, np.arange(span.start, span.start + span.length)
            arrays["token_ids"][at:end] = span.token_ids
            arrays["positions"][at:end] = where
            first = span.start // size
            pages = np.array(span.pages[first:], dtype=np.int64)
            arrays["kv_index"][at:end] = pages[where // size - first] * size + where % size

            index = np.arange(-(-span.length // chunk))
            block = table[num_chunks : num_chunks + len(index)]
            block[:, 0] = i
            block[:, 1] = at + index * chunk
            block[:, 2] = np.minimum(span.length - index * chunk, chunk)
            block[:, 3] = index
            at, num_chunks = end, num_chunks + len(index)
            cu_seqlens[i + 1], cu_chunks[i + 1] = at, num_chunks
        arrays["prefill_contexts"][:] = [span.start + span.length for span in spans]
        arrays["prefill_reads"][:] = [span.read_slot for span in spans]
        arrays["prefill_writes"][:] = [span.write_slot for span in spans]
        _write_pages(arrays["pages"][first_span:], spans)


_Arrays = dict[str, np.ndarray]


class _Sizes(NamedTuple):
    """All that decides where a step's data stand."""

    tokens: int  # with padding, as all of these are
    decodes: int
    prefills: int
    ends: int
    chunks: int
    samples: int
    prompts: int
    edit_words: int


def _sections(n: _Sizes, table_width: int) -> tuple[Section, ...]:
    """A graph is replayed with the addresses of its capture: what the model reads comes first, in sizes that follow
    from the rung alone."""
    return (
        Section("kv_index", (n.tokens,), "int64"),
        Section("token_ids", (n.tokens,)),
        Section("positions", (n.tokens,)),
        Section("pages", (max(n.decodes + n.prefills, n.ends), table_width)),
        Section("decode_contexts", (n.decodes,)),
        Section("decode_reads", (n.decodes,)),
        Section("decode_writes", (n.decodes,)),
        Section("cu_seqlens", (n.prefills + 1,)),
        Section("cu_chunks", (n.prefills + 1,)),
        Section("prefill_contexts", (n.prefills,)),
        Section("prefill_reads", (n.prefills,)),
        Section("prefill_writes", (n.prefills,)),
        Section("chunks", (n.chunks, 4)),
        *end_sections(n.ends),
        *row_sections(n.samples, n.prompts, n.edit_words),
    )


def _write_pages(table: np.ndarray, spans: tuple[Span, ...]) -> None:
    for row, span in zip(table, spans, strict=False):
        row[: len(span.pages)] = span.pages


def _decode_inputs(image: dict[str, Tensor], spans: tuple[Span, ...], *, together: bool) -> DecodeInputs:
    contexts = tuple([span.start + 1 for span in spans])
    return DecodeInputs(
        num_sequences=len(spans),
        max_context=max(contexts, default=0),
        contexts=contexts,
        reads=tuple([span.read_slot for span in spans]),
        writes=tuple([span.write_slot for span in spans]),
        page_table=image["pages"] if together else image["pages"][: len(spans)],
        context_lens=image["decode_contexts"],
        read_slots=image["decode_reads"],
        write_slots=image["decode_writes"],
    )


def _prefill_inputs(
    image: dict[str, Tensor], spans: tuple[Span, ...], first_token: int, num_chunks: int, chunk_length: int
) -> PrefillInputs:
    return PrefillInputs(
        num_sequences=len(spans),
        first_token=first_token,
        lengths=tuple([span.length for span in spans]),
        contexts=tuple([span.start + span.length for span in spans]),
        reads=tuple([span.read_slot for span in spans]),
        writes=tuple([span.write_slot for span in spans]),
        num_chunks=num_chunks,
        chunk_length=chunk_length,
        cu_seqlens=image["cu_seqlens"],
        context_lens=image["prefill_contexts"],
        page_table=image["pages"][first_token : first_token + len(spans)],
        read_slots=image["prefill_reads"],
        write_slots=image["prefill_writes"],
        chunks=image["chunks"],
        cu_chunks=image["cu_chunks"],
    )
