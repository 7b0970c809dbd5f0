"""launch_space(): all that can change a binary, from what start-up knows, with steps built by the code that serves."""

import dataclasses
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from hotstart.config.model import ModelConfig
from hotstart.engine.device import Device
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import NO_SLOT, Span, StepPlan
from hotstart.kernels.ops import Prefill
from hotstart.kernels.space import LaunchSpace
from hotstart.kernels.step import Step
from hotstart.layers.attention import attention_dims
from hotstart.layers.gated_delta_net import gdn_dims
from hotstart.layers.moe import moe_dims

__all__ = ["launch_space", "moved"]

_NUM_SLOTS = 5
T = TypeVar("T")


def launch_space(
    config: ModelConfig,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
    limits: StepLimits,
    device: Device,
    gdn_prefill: Prefill = "triton",
) -> LaunchSpace:
    """Warm-up steps hold two answers and two prompts: one from zero, one that goes on; one ends within a chunk."""
    chunk, size = limits.chunk_length, limits.page_size
    longest = 3 * chunk
    # The limits of traffic may be too small for such a step; nothing that a launch sees depends on them.
    limits = dataclasses.replace(
        limits,
        max_num_seqs=max(limits.max_num_seqs, 4),
        max_num_batched_tokens=max(limits.max_num_batched_tokens, longest),
        max_model_len=max(limits.max_model_len, longest),
        num_slots=max(limits.num_slots, _NUM_SLOTS),
    )
    rungs = device.token_rungs(limits.max_num_batched_tokens)
    inputs = cache(lambda: InputBuilder(limits, device))  # at the first step: its memory is not to lie among weights
    rows = (5, 1, 0, 0), (0, 1, NO_SLOT, 1), (0, chunk + 1, NO_SLOT, 2), (chunk, chunk // 2, 3, 4)
    plan = _plan(rows, size)

    def step(on: torch.device) -> Step:
        return moved(inputs().build(plan).inputs, on)

    def prompts(on: torch.device, lengths: tuple[int, ...]) -> Step:
        enough = dataclasses.replace(
            limits,
            max_num_seqs=len(lengths),
            max_num_batched_tokens=sum(lengths),
            max_model_len=max(lengths),
            num_slots=len(lengths),
        )
        plan = _plan([(0, length, NO_SLOT, i) for i, length in enumerate(lengths)], size)
        return moved(InputBuilder(enough, device).build(plan).inputs, on)

    return LaunchSpace(
        hidden_size=config.hidden_size,
        eps=config.rms_norm_eps,
        activation_dtypes=(dtype,),
        step=step,
        prompts=prompts,
        num_tokens=rungs[bisect_left(rungs, plan.num_tokens)],
        num_slots=_NUM_SLOTS,
        num_pages=1,
        page_size=size,
        gdn=gdn_dims(config),
        gdn_prefill=gdn_prefill,
        state_dtype=state_dtype,
        attention=attention_dims(config),
        moe=moe_dims(config) if any(config.moe_layers) else None,
        mlp_widths=_widths(config, moe=False),
        shared_widths=_widths(config, moe=True),
        vocab_size=config.vocab_size,
        num_positions=longest,
    )


def _plan(rows: Sequence[tuple[int, int, int, int]], page_size: int) -> StepPlan:
    """Of a span for each start, length, read slot and write slot, on page 0."""
    spans = []
    for index, (start, length, read, write) in enumerate(rows):
        pages = (0,) * -(-(start + length) // page_size)
        spans.append(Span(index, start, length, (0,) * length, pages, read, write))
    return StepPlan(0, tuple(spans))


def _widths(config: ModelConfig, *, moe: bool) -> tuple[int, ...]:
    """Of the feed-forwards that all tokens of a layer go through; a shared expert as wide as the others is none."""
    if moe not in config.moe_layers or (moe and moe_dims(config).shares):
        return ()
    return (config.shared_expert_intermediate_size if moe else config.intermediate_size,)


def moved(thing: T, device: torch.device) -> T:
    """The same step, or any dataclass, with its tensors on `device`."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value, **{f.name: move(getattr(value, f.name)) for f in dataclasses.fields(value)}
            )
        return value

    moved_thing: T = move(thing)
    return moved_thing
