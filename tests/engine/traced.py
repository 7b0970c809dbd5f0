"""What a step takes, by running it: the real layers and sampler on meta, their tensors by the allocator's rules."""

import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hotstart.cache.tensors import CacheTensors
from hotstart.config.model import ModelConfig
from hotstart.engine.allocator import Segments
from hotstart.engine.check import StubDevice
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.limits import StepLimits
from hotstart.engine.meter import StepMeter
from hotstart.engine.plan import StepPlan
from hotstart.engine.sampler import Sampler
from hotstart.engine.space import moved
from hotstart.kernels import dry
from hotstart.kernels.backends import ops_for
from hotstart.kernels.launch import Launcher
from hotstart.models import build_model, resolve_dtype, resolve_state_dtype

META = torch.device("meta")


class _Ledger:
    """Takes the place of the meter's own."""

    def __init__(self) -> None:
        self.segments = Segments()
        self.live = self.most = 0
        self._places: dict[int, tuple[Any, int]] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._places and tensor.device == META:
            self._places[key] = self.segments.take(storage.nbytes()), storage.nbytes()
            self.live += storage.nbytes()
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        place, num_bytes = self._places.pop(key)
        self.segments.free(place)
        self.live -= num_bytes


class _Landing:
    def fetch(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors


def trace(
    config: ModelConfig, limits: StepLimits, plans: list[StepPlan], gpu: str, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, int]]:
    """For each plan the bytes of tensors at the worst moment, and what the allocator took from the driver."""
    monkeypatch.setattr(Launcher, "__call__", lambda *args, **options: None)
    dtype, states = resolve_dtype(config, "auto"), resolve_state_dtype(config, "auto")
    model = build_model(config, ops_for("triton"), dtype, states, num_positions=limits.max_model_len)
    cache = CacheTensors(
        model.layout(limits.page_size), 1, 1, lambda shape, kind: torch.empty(shape, dtype=kind, device=META)
    )
    device = StubDevice()
    inputs = InputBuilder(limits, device)
    sampler = Sampler(model.logits, model.ops, limits, device)
    sampler.last_tokens = sampler.last_tokens.to(META)
    sampler._history = sampler._history.to(META)
    sampler._landing = _Landing()
    found = []
    with dry.gpu(gpu), torch.inference_mode():
        for plan in plans:
            built = inputs.build(plan)
            to_meta = partial(moved, device=META)
            built = replace(
                built,
                inputs=to_meta(built.inputs),
                samples=to_meta(built.samples),
                prompts=None if built.prompts is None else to_meta(built.prompts),
            )
            meter = StepMeter()
            meter._ledger = ledger = _Ledger()
            with meter:
                hidden = model(built.inputs, cache)
                sampled = sampler.run(hidden, built)
                del hidden, sampled
            found.append((ledger.most, ledger.segments.peak))
    return found
