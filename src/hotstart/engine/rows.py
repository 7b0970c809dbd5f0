"""Which rows of a step's hidden states become logits, and what is wanted of them."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hotstart.engine.plan import Sampling, StepPlan
from hotstart.engine.sheet import Section
from hotstart.engine.sizes import padded_rows
from hotstart.kernels.sampling import SamplingRows, candidates

__all__ = ["PromptRows", "RowList", "SampleRows", "row_sections"]


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
    """Collects the rows of one plan, writes them into their sections, and reads them back as tensors."""

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

    @property
    def num_banned(self) -> int:
        return sum([len(sampling.banned_ids) for _, sampling, _ in self._samples])

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
        if not self._samples:
            return
        integers = [(slot, wish.top_k, wish.seed, wish.position) for _, wish, slot in self._samples]
        for name, column in zip(("slots", "top_k", "seeds", "sample_positions"), np.array(integers).T, strict=True):
            arrays[name][:real] = column
        arrays["temperature"][:real] = [wish.temperature for _, wish, _ in self._samples]
        arrays["top_p"][:real] = [wish.top_p for _, wish, _ in self._samples]
        if len(arrays["banned"]):
            wishes = enumerate(wish for _, wish, _ in self._samples)
            arrays["banned"][:] = [(i % self._slab_rows, id) for i, wish in wishes for id in wish.banned_ids]

    def sample_rows(self, image: dict[str, Tensor]) -> SampleRows:
        slabs, first_banned = [], 0
        for first in range(0, self.num_samples, self._slab_rows):
            rows = slice(first, first + self._slab_rows)
            wishes = [wish for _, wish, _ in self._samples[rows]]
            num_banned = sum([len(wish.banned_ids) for wish in wishes])

            def part(name: str, rows: slice = rows) -> Tensor:
                return image[name] if self.num_samples <= self._slab_rows else image[name][rows]

            slab = SamplingRows(
                temperature=part("temperature"),
                top_k=part("top_k"),
                top_p=part("top_p"),
                seed=part("seeds"),
                position=part("sample_positions"),
                banned=image["banned"][first_banned : first_banned + num_banned] if num_banned else image["banned"],
                all_greedy=all(wish.temperature == 0.0 for wish in wishes),
                candidates=max((candidates(w.top_k, w.top_p) for w in wishes if w.temperature), default=0),
                num_banned=num_banned,
            )
            slabs.append(slab)
            first_banned += num_banned
        return SampleRows(
            spans=tuple([index for index, _, _ in self._samples]),
            logprobs=max((w.logprobs for _, w, _ in self._samples if w.logprobs is not None), default=None),
            slots=image["slots"],
            slabs=tuple(slabs),
        )

    def prompt_rows(self, image: dict[str, Tensor]) -> PromptRows | None:
        if not self._targets:
            return None
        return PromptRows(tuple(self._prompts), self._prompt_logprobs, image["targets"], tuple(self._targets))


def row_sections(num_samples: int, num_prompts: int, num_banned: int) -> tuple[Section, ...]:
    return (
        Section("logit_rows", (num_samples + num_prompts,)),
        Section("targets", (num_prompts,), "int64"),
        Section("temperature", (num_samples,), "float32"),
        Section("top_p", (num_samples,), "float32"),
        Section("top_k", (num_samples,), "int64"),
        Section("seeds", (num_samples,), "int64"),
        Section("sample_positions", (num_samples,), "int64"),
        Section("slots", (num_samples,), "int64"),
        Section("banned", (num_banned, 2), "int64"),
    )
