"""Which rows of a step's hidden states become logits, and what is wanted of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hotstart.engine.plan import Sampling, StepPlan
from hotstart.engine.sheet import Sheet
from hotstart.engine.sizes import padded_rows
from hotstart.kernels.sampling import SamplingRows, candidates

__all__ = ["PromptRows", "RowList", "SampleRows"]


@dataclass(frozen=True, slots=True)
class SampleRows:
    """The spans that sample a token, in the plan's order, padded to a row rung with greedy rows that write nowhere."""

    spans: tuple[int, ...]  # host: index of each real row's span
    logprobs: int | None  # host: the most alternatives that a row wants, None if no row wants any
    slots: Tensor  # [R] int64: where the token goes in last_tokens
    slabs: tuple[SamplingRows, ...]  # one for each slab of R


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Positions of prompts whose next token's log-probability is wanted; their rows follow the sample rows."""

    spans: tuple[tuple[int, int], ...]  # host: span index and number of rows, in the plan's order
    logprobs: int  # host: the most alternatives that a span wants
    targets: Tensor  # [P] int64, padded to a row rung
    target_ids: tuple[int, ...]  # host: the real ones


class RowList:
    """Collects the rows of one plan, writes them into the sheet, and reads them back as tensors."""

    def __init__(self, plan: StepPlan, slab_rows: int, rungs: tuple[int, ...], no_slot: int) -> None:
        self._slab_rows = slab_rows
        self._no_slot = no_slot
        self._samples: list[tuple[int, Sampling, int]] = []  # span index, sampling, slot
        self._prompts: list[tuple[int, int]] = []  # span index, rows
        self._targets: list[int] = []
        self._prompt_logprobs = 0
        sample_rows: list[int] = []
        prompt_rows: list[int] = []
        first = 0
        for index, span in enumerate(plan.spans):
            if span.sampling is not None:
                self._samples.append((index, span.sampling, span.write_slot))
                sample_rows.append(first + span.length - 1)
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

    def write(self, sheet: Sheet) -> None:
        sample_rows, prompt_rows = self._rows
        rows = sheet.take("logit_rows", self.num_samples + self.num_prompts)
        rows[: len(sample_rows)] = sample_rows
        rows[self.num_samples : self.num_samples + len(prompt_rows)] = prompt_rows
        if self._targets:
            sheet.take_int64("targets", self.num_prompts)[: len(self._targets)] = self._targets

        wishes = [sampling for _, sampling, _ in self._samples]
        real = len(wishes)
        sheet.take_float32("temperature", self.num_samples)[:real] = [wish.temperature for wish in wishes]
        sheet.take_int64("top_k", self.num_samples)[:real] = [wish.top_k for wish in wishes]
        top_p = sheet.take_float32("top_p", self.num_samples)
        top_p.fill(1.0)
        top_p[:real] = [wish.top_p for wish in wishes]
        sheet.take_int64("seeds", self.num_samples)[:real] = [wish.seed for wish in wishes]
        sheet.take_int64("sample_positions", self.num_samples)[:real] = [wish.position for wish in wishes]
        slots = sheet.take_int64("slots", self.num_samples)
        slots.fill(self._no_slot)
        slots[:real] = [slot for _, _, slot in self._samples]
        banned = [(row % self._slab_rows, id) for row, wish in enumerate(wishes) for id in wish.banned_ids]
        pairs = sheet.take_int64("banned", 2 * len(banned)).reshape(len(banned), 2)
        if banned:
            pairs[:] = banned

    def sample_rows(self, image: dict[str, Tensor]) -> SampleRows:
        wishes = [sampling for _, sampling, _ in self._samples]
        slabs, first_banned = [], 0
        for first in range(0, self.num_samples, self._slab_rows):
            rows = slice(first, first + self._slab_rows)
            num_banned = sum(len(wish.banned_ids) for wish in wishes[rows])
            slab = SamplingRows(
                temperature=image["temperature"][rows].view(torch.float32),
                top_k=image["top_k"][rows],
                top_p=image["top_p"][rows].view(torch.float32),
                seed=image["seeds"][rows],
                position=image["sample_positions"][rows],
                banned=image["banned"].view(-1, 2)[first_banned : first_banned + num_banned],
                all_greedy=all(wish.temperature == 0.0 for wish in wishes[rows]),
                candidates=max((candidates(w.top_k, w.top_p) for w in wishes[rows] if w.temperature), default=0),
                num_banned=num_banned,
            )
            slabs.append(slab)
            first_banned += num_banned
        return SampleRows(
            spans=tuple(index for index, _, _ in self._samples),
            logprobs=max((wish.logprobs for wish in wishes if wish.logprobs is not None), default=None),
            slots=image["slots"],
            slabs=tuple(slabs),
        )

    def prompt_rows(self, image: dict[str, Tensor]) -> PromptRows | None:
        if not self._targets:
            return None
        return PromptRows(tuple(self._prompts), self._prompt_logprobs, image["targets"], tuple(self._targets))
