"""Which rows of a step's hidden states become logits, and what is wanted of them."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hotstart.engine.edit_rows import EditRows, Strip
from hotstart.engine.masks import MaskBuffer
from hotstart.engine.plan import Sampling, Span, StepPlan
from hotstart.engine.sheet import Section
from hotstart.engine.sizes import padded_rows
from hotstart.kernels.edits import Records
from hotstart.kernels.sampling import SamplingRows, candidates

__all__ = ["PromptRows", "RowList", "SampleRows", "row_sections"]


@dataclass(frozen=True, slots=True)
class SampleRows:
    """The spans that sample a token, in the plan's order, padded to a row rung with greedy rows that write nowhere."""

    spans: tuple[int, ...]  # host: index of each real row's span
    logprobs: int | None  # host: the most alternatives that a row wants, None if no row wants any
    slots: Tensor  # [R] int64: where the token goes in last_tokens
    slabs: tuple[SamplingRows, ...]  # one for each slab of R
    records: Records | None  # spans of sequences whose tokens are counted, whether they sample or not


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Positions of prompts whose next token's log-probability is wanted; their rows follow the sample rows."""

    spans: tuple[tuple[int, int], ...]  # host: span index and number of rows, in the plan's order
    logprobs: int  # host: the most alternatives that a span wants
    targets: Tensor  # [P] int64, padded to a row rung
    target_ids: tuple[int, ...]  # host: the real ones


class RowList:
    """Collects the rows of one plan, writes them into their sections, and reads them back as tensors."""

    def __init__(self, plan: StepPlan, slab_rows: int, rungs: tuple[int, ...], no_slot: int, masks: MaskBuffer) -> None:
        self._slab_rows = slab_rows
        self._no_slot = no_slot
        self._samples: list[tuple[int, Sampling, Span]] = []  # index of the span
        self._records: list[tuple[int, int, int, int]] = []
        self._prompts: list[tuple[int, int]] = []  # span index, rows
        self._targets: list[int] = []
        self._prompt_logprobs = 0
        # Where prompts are all that is long in a step, and nobody wants the log-probabilities of their tokens.
        self.ends_alone = plan.num_decodes < len(plan.spans) and all(s.prompt_logprobs is None for s in plan.spans)
        sample_rows: list[int] = []
        prompt_rows: list[int] = []
        first, edited = 0, False
        for index, span in enumerate(plan.spans):
            if span.sampling is not None:
                self._samples.append((index, span.sampling, span))
                sample_rows.append(index if self.ends_alone else first + span.length - 1)
                edited = edited or span.sampling.edits_logits
            if span.penalties is not None:
                self._records.append((span.penalties.slot, span.start, first, span.length))
            if span.prompt_logprobs is not None:
                targets = span.token_ids[1:] + (() if span.next_prompt_id is None else (span.next_prompt_id,))
                self._prompts.append((index, len(targets)))
                self._targets += targets
                self._prompt_logprobs = max(self._prompt_logprobs, span.prompt_logprobs)
                prompt_rows += range(first, first + len(targets))
            first += span.length
        self._rows = sample_rows, prompt_rows
        self.num_samples = padded_rows(len(sample_rows), slab_rows, rungs)
        self.num_prompts = padded_rows(len(prompt_rows), slab_rows, rungs)
        self._edits: list[EditRows] = []  # of each slab, where any row wants any
        self.num_edit_words = 0
        if edited or self._records:
            self._collect_edits(masks)

    def _collect_edits(self, masks: MaskBuffer) -> None:
        strip = Strip()
        wishes = [(span, sampling) for _, sampling, span in self._samples]
        starts = range(0, len(wishes), self._slab_rows)
        self._edits = [EditRows(wishes[at : at + self._slab_rows], masks, strip) for at in starts]
        self._records_at = strip.take(4 * len(self._records))
        # Rounded up, so that steps of few sizes ever come.
        self.num_edit_words = max(64, 1 << (strip.num_words - 1).bit_length())

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """The sections are zero, which makes rows of padding greedy."""
        sample_rows, prompt_rows = self._rows
        real = len(sample_rows)
        rows = arrays["logit_rows"]
        rows[:real] = sample_rows
        if prompt_rows:
            rows[self.num_samples : self.num_samples + len(prompt_rows)] = prompt_rows
            arrays["targets"][: len(self._targets)] = self._targets
        arrays["slots"][real:] = self._no_slot
        arrays["top_p"][real:] = 1.0
        if self.num_edit_words:
            words = arrays["edits"]
            for edits in self._edits:
                edits.write(words)
            words[self._records_at] = np.array(self._records).ravel()
        if not self._samples:
            return
        integers = [(span.write_slot, wish.top_k, wish.seed, wish.position) for _, wish, span in self._samples]
        for name, column in zip(("slots", "top_k", "seeds", "sample_positions"), np.array(integers).T, strict=True):
            arrays[name][:real] = column
        arrays["temperature"][:real] = [wish.temperature for _, wish, _ in self._samples]
        arrays["top_p"][:real] = [wish.top_p for _, wish, _ in self._samples]
        if any(min_p := [wish.min_p for _, wish, _ in self._samples]):
            arrays["min_p"][:real] = min_p

    def sample_rows(self, image: dict[str, Tensor]) -> SampleRows:
        slabs, words = [], image["edits"]
        for number, first in enumerate(range(0, self.num_samples, self._slab_rows)):
            rows = slice(first, first + self._slab_rows)
            wishes = [wish for _, wish, _ in self._samples[rows]]

            def part(name: str, rows: slice = rows) -> Tensor:
                return image[name] if self.num_samples <= self._slab_rows else image[name][rows]

            slab = SamplingRows(
                temperature=part("temperature"),
                top_k=part("top_k"),
                top_p=part("top_p"),
                min_p=part("min_p"),
                seed=part("seeds"),
                position=part("sample_positions"),
                all_greedy=all(wish.temperature == 0.0 for wish in wishes),
                candidates=max((candidates(w.top_k, w.top_p) for w in wishes if w.temperature), default=0),
                any_min_p=any([wish.min_p for wish in wishes]),  # noqa: C419  a list is faster
                grammar=self._edits[number].grammar(words) if self._edits else None,
                edits=self._edits[number].read(words) if self._edits else None,
            )
            slabs.append(slab)
        return SampleRows(
            spans=tuple([index for index, _, _ in self._samples]),
            logprobs=max((w.logprobs for _, w, _ in self._samples if w.logprobs is not None), default=None),
            slots=image["slots"],
            slabs=tuple(slabs),
            records=Records(words[self._records_at].view(-1, 4), tuple(self._records)) if self._records else None,
        )

    def prompt_rows(self, image: dict[str, Tensor]) -> PromptRows | None:
        if not self._targets:
            return None
        return PromptRows(tuple(self._prompts), self._prompt_logprobs, image["targets"], tuple(self._targets))


def row_sections(num_samples: int, num_prompts: int, num_edit_words: int) -> tuple[Section, ...]:
    return (
        Section("logit_rows", (num_samples + num_prompts,)),
        Section("targets", (num_prompts,), "int64"),
        Section("temperature", (num_samples,), "float32"),
        Section("top_p", (num_samples,), "float32"),
        Section("min_p", (num_samples,), "float32"),
        Section("top_k", (num_samples,), "int64"),
        Section("seeds", (num_samples,), "int64"),
        Section("sample_positions", (num_samples,), "int64"),
        Section("slots", (num_samples,), "int64"),
        Section("edits", (num_edit_words,)),
    )
