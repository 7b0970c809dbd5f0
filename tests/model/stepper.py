"""Stepper: a model, its caches and a few sequences, advanced by plans made by hand."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hotstart.cache.tensors import Allocate, CacheTensors
from hotstart.config.model import read_model_config
from hotstart.engine.device import CpuDevice, Device
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import NO_SLOT, Span, StepPlan
from hotstart.kernels.backends import ops_for
from hotstart.kernels.ops import Ops
from hotstart.models import build_model
from hotstart.models.qwen3_5 import Qwen35
from hotstart.models.weights import load_weights

__all__ = ["Stepper", "allocate", "load_model"]

PAGE_SIZE = 16
MAX_LENGTH = 320


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Poisoned: what is read before it is written shows."""
    return torch.full(shape, float("nan"), dtype=dtype)


def load_model(
    folder: Path,
    dtype: torch.dtype,
    state_dtype: torch.dtype = torch.float32,
    ops: Ops | None = None,
    allocate: Allocate = allocate,
) -> Qwen35:
    model = build_model(read_model_config(folder), ops or ops_for("torch"), dtype, state_dtype, MAX_LENGTH)
    load_weights(model, folder, allocate)
    return model


class Stepper:
    """Sequence i owns slot i and as many pages as the longest sequence needs."""

    def __init__(
        self,
        model: Qwen35,
        prompts: list[list[int]],
        device: Device | None = None,
        allocate: Allocate = allocate,
    ) -> None:
        device = device or CpuDevice()
        self.model = model
        self.tokens = [list(prompt) for prompt in prompts]
        self.done = [0] * len(prompts)  # tokens computed
        count = len(prompts)
        limits = StepLimits(
            max_num_seqs=count,
            max_num_batched_tokens=512,
            max_model_len=MAX_LENGTH,
            page_size=PAGE_SIZE,
            chunk_length=device.chunk_length,
            slab_rows=device.slab_rows,
            num_slots=count,
            num_end_ids=0,
            vocab_size=model.config.vocab_size,
        )
        self.inputs = InputBuilder(limits, device)
        # Pages of one sequence lie between those of the others.
        self.pages = [tuple(range(i, count * limits.max_pages, count)) for i in range(count)]
        self.cache = CacheTensors(model.layout(PAGE_SIZE), count * limits.max_pages, count, allocate)

    def step(self, lengths: list[int], *, ends_alone: bool = False) -> list[Tensor]:
        """Advance sequence i by lengths[i] of its tokens (0: it rests); the logits of those, [lengths[i], vocab], or
        of the last of them, [1, vocab]."""
        moving = [i for i, length in enumerate(lengths) if length]
        spans = sorted((self._span(i, lengths[i]) for i in moving), key=lambda span: span.length > 1)
        plan = StepPlan(0, tuple(spans))
        inputs = self.inputs.build(plan).inputs
        counts = [1 if ends_alone else s.length for s in spans]
        hidden = self.model(inputs if ends_alone else replace(inputs, ends_alone=False), self.cache)
        logits = self.model.logits(hidden[: sum(counts)])
        parts = dict(zip([s.sequence_id for s in spans], logits.split(counts), strict=True))
        for i in moving:
            self.done[i] += lengths[i]
        return [parts.get(i, logits[:0]) for i in range(len(lengths))]

    def _span(self, i: int, length: int) -> Span:
        start, end = self.done[i], self.done[i] + length
        return Span(
            sequence_id=i,
            start=start,
            length=length,
            token_ids=tuple(self.tokens[i][start:end]),
            pages=self.pages[i][: -(-end // PAGE_SIZE)],
            read_slot=i if start else NO_SLOT,
            write_slot=i,
        )
