"""StepPlan -> tensors: everything one step needs is written into one host buffer, and copied to the device once.

The buffer is cut into sections of 4-byte words, each section 16-byte aligned.  A step's tensors are views of the image
on the device and live until the next step is built.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hotstart.cache.step import DecodeInputs, PrefillInputs, StepInputs
from hotstart.engine.device import Device
from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Span, StepPlan
from hotstart.engine.rows import PromptRows, RowList, SampleRows
from hotstart.engine.sheet import Sheet

__all__ = ["BuiltStep", "InputBuilder"]


@dataclass(frozen=True, slots=True)
class BuiltStep:
    inputs: StepInputs
    samples: SampleRows
    prompts: PromptRows | None
    reads_last_tokens: bool  # host: a decode span's token is still on the device
    decode_rung: int | None = None  # host: rows of a step of answers alone, where such steps are padded


class InputBuilder:
    def __init__(self, limits: StepLimits, device: Device) -> None:
        self.limits = limits
        self.rungs = device.token_rungs(limits.max_num_batched_tokens)
        self.decode_rungs = device.decode_rungs(limits.max_num_seqs)
        self.row_rungs = device.row_rungs(limits.slab_rows)
        self._staging = device.staging(limits.staging_bytes(self.rungs, self.row_rungs))
        # Most steps hold no prompt, and then these sections are empty.
        nothing = device.arena.allocate("staging", (0,), torch.int32)
        self._no_prompts = dict.fromkeys(
            ("prefill_pages", "prefill_contexts", "prefill_reads", "prefill_writes", "chunks"), nothing
        )

    def rung(self, num_tokens: int) -> int:
        return self.rungs[bisect_left(self.rungs, num_tokens)]

    def decode_rung(self, plan: StepPlan) -> int | None:
        """What a step of answers alone is padded to; None for any other step, and where none is padded."""
        if not self.decode_rungs or plan.num_decodes < len(plan.spans):
            return None
        return self.decode_rung_of(plan.num_decodes)

    def decode_rung_of(self, num_sequences: int) -> int:
        return self.decode_rungs[bisect_left(self.decode_rungs, num_sequences)]

    def build(self, plan: StepPlan) -> BuiltStep:
        sheet = Sheet(self._staging.buffer().view(np.int32))
        num_tokens, num_decodes = plan.num_tokens, plan.num_decodes
        decodes, prefills = plan.spans[:num_decodes], plan.spans[num_decodes:]
        rows = RowList(plan, self.limits.slab_rows, self.row_rungs, no_slot=self.limits.num_slots)

        # A graph is replayed with the addresses of its capture: what the model reads comes first, in sizes that follow
        # from the rung alone.
        decode_rung = self.decode_rung(plan)
        self._write_tokens(sheet, decodes, prefills, decode_rung or self.rung(num_tokens))
        self._write_decodes(sheet, decodes, decode_rung or num_decodes)
        num_chunks = self._write_prefills(sheet, prefills, num_decodes)
        rows.write(sheet)

        image = self._no_prompts | sheet.read(self._staging.upload(4 * sheet.size))
        return BuiltStep(
            inputs=StepInputs(
                num_tokens=num_tokens,
                token_ids=image["token_ids"],
                positions=image["positions"],
                kv_index=image["kv_index"],
                decode=self._decode_inputs(image, decodes, decode_rung or num_decodes),
                prefill=self._prefill_inputs(image, prefills, num_decodes, num_chunks),
                logit_rows=image["logit_rows"],
            ),
            samples=rows.sample_rows(image),
            prompts=rows.prompt_rows(image),
            reads_last_tokens=any(span.token_ids[0] == IN_FLIGHT for span in decodes),
            decode_rung=decode_rung,
        )

    def _write_tokens(self, sheet: Sheet, decodes: tuple[Span, ...], prefills: tuple[Span, ...], rung: int) -> None:
        size = self.limits.page_size
        kv_index = sheet.take_int64("kv_index", rung)
        kv_index.fill(-1)
        token_ids, positions = sheet.take("token_ids", rung), sheet.take("positions", rung)
        at = len(decodes)
        token_ids[:at] = [span.token_ids[0] for span in decodes]
        positions[:at] = [span.start for span in decodes]
        kv_index[:at] = [span.pages[-1] * size + span.start % size for span in decodes]
        for span in prefills:
            end = at + span.length
            token_ids[at:end] = span.token_ids
            where = np.arange(span.start, span.start + span.length)
            positions[at:end] = where
            first = span.start // size
            pages = np.array(span.pages[first:], dtype=np.int64)
            kv_index[at:end] = pages[where // size - first] * size + where % size
            at = end

    def _write_decodes(self, sheet: Sheet, spans: tuple[Span, ...], rows: int) -> None:
        """Rows of padding have a context of 0 and no slots."""
        real = len(spans)
        self._write_page_table(sheet, "decode_pages", spans, rows)
        sheet.take("decode_contexts", rows)[:real] = [span.start + 1 for span in spans]
        for name, slots in (
            ("decode_reads", [span.read_slot for span in spans]),
            ("decode_writes", [span.write_slot for span in spans]),
        ):
            section = sheet.take(name, rows)
            section[:real] = slots
            section[real:] = NO_SLOT

    def _write_prefills(self, sheet: Sheet, spans: tuple[Span, ...], first_token: int) -> int:
        """Returns the number of chunks."""
        count, chunk = len(spans), self.limits.chunk_length
        cu_seqlens, cu_chunks = sheet.take("cu_seqlens", count + 1), sheet.take("cu_chunks", count + 1)
        cu_seqlens[0] = first_token
        if not spans:
            return 0
        lengths = [span.length for span in spans]
        chunk_counts = [-(-length // chunk) for length in lengths]
        self._write_page_table(sheet, "prefill_pages", spans, count)
        sheet.take("prefill_contexts", count)[:] = [span.start + span.length for span in spans]
        sheet.take("prefill_reads", count)[:] = [span.read_slot for span in spans]
        sheet.take("prefill_writes", count)[:] = [span.write_slot for span in spans]
        cu_seqlens[1:] = first_token + np.cumsum(lengths, dtype=np.int32)
        cu_chunks[1:] = np.cumsum(chunk_counts, dtype=np.int32)
        table = sheet.take("chunks", 4 * sum(chunk_counts)).reshape(-1, 4)
        at = 0
        for i, (length, num_chunks) in enumerate(zip(lengths, chunk_counts, strict=True)):
            block, index = table[at : at + num_chunks], np.arange(num_chunks)
            block[:, 0] = i
            block[:, 1] = cu_seqlens[i] + index * chunk
            block[:, 2] = np.minimum(length - index * chunk, chunk)
            block[:, 3] = index
            at += num_chunks
        return sum(chunk_counts)

    def _write_page_table(self, sheet: Sheet, name: str, spans: tuple[Span, ...], rows: int) -> None:
        table = sheet.take(name, rows * self.limits.max_pages).reshape(rows, self.limits.max_pages)
        for row, span in zip(table, spans, strict=False):
            row[: len(span.pages)] = span.pages

    def _decode_inputs(self, image: dict[str, Tensor], spans: tuple[Span, ...], rows: int) -> DecodeInputs:
        contexts = tuple(span.start + 1 for span in spans)
        return DecodeInputs(
            num_sequences=len(spans),
            max_context=max(contexts, default=0),
            contexts=contexts,
            reads=tuple(span.read_slot for span in spans),
            writes=tuple(span.write_slot for span in spans),
            page_table=image["decode_pages"].view(rows, self.limits.max_pages),
            context_lens=image["decode_contexts"],
            read_slots=image["decode_reads"],
            write_slots=image["decode_writes"],
        )

    def _prefill_inputs(
        self, image: dict[str, Tensor], spans: tuple[Span, ...], first_token: int, num_chunks: int
    ) -> PrefillInputs:
        return PrefillInputs(
            num_sequences=len(spans),
            first_token=first_token,
            lengths=tuple(span.length for span in spans),
            contexts=tuple(span.start + span.length for span in spans),
            reads=tuple(span.read_slot for span in spans),
            writes=tuple(span.write_slot for span in spans),
            num_chunks=num_chunks,
            chunk_length=self.limits.chunk_length,
            cu_seqlens=image["cu_seqlens"],
            context_lens=image["prefill_contexts"],
            page_table=image["prefill_pages"].view(len(spans), self.limits.max_pages),
            read_slots=image["prefill_reads"],
            write_slots=image["prefill_writes"],
            chunks=image["chunks"].view(num_chunks, 4),
            cu_chunks=image["cu_chunks"],
        )
