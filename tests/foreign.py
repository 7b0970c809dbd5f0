"""What a step does not own: the memory of others is the same after it, and what lay in free memory does not show."""

import torch
from torch import Tensor

from hotstart.cache.tensors import CacheTensors
from hotstart.engine.engine import Engine
from hotstart.engine.plan import StepPlan

__all__ = ["fill_with_nan", "watch_foreign_memory"]


def tensors(cache: CacheTensors) -> tuple[Tensor, Tensor, Tensor]:
    return cache.kv_tensor, cache.conv_tensor, cache.state_tensor


def fill_with_nan(engine: Engine) -> None:
    """All pages and slots of an engine in which no sequence is."""
    assert engine.use.pages_used == engine.use.slots_used == 0
    for tensor in tensors(engine._runner._cache):
        tensor.fill_(torch.nan)


def watch_foreign_memory(engine: Engine, monkeypatch) -> list[tuple[int, int]]:
    """Every step from now on is held to what it may write; its numbers of sequences that answer, and of all."""
    cache, launch, seen = engine._runner._cache, engine._runner.launch, []

    def watched(plan: StepPlan, **how: bool) -> object:
        before = [tensor.cpu().clone() for tensor in tensors(cache)]
        flight = launch(plan, **how)
        size = engine.limits.page_size
        pages = {page for span in plan.spans for page in span.pages[span.start // size :]}
        slots = {span.write_slot for span in plan.spans}
        for tensor, old, mine, axis in zip(tensors(cache), before, (pages, slots, slots), (2, 1, 1), strict=True):
            others = torch.tensor([i for i in range(tensor.shape[axis]) if i not in mine])
            now, then = (t.index_select(axis, others) for t in (tensor.cpu(), old))
            assert torch.equal(now.view(torch.uint8), then.view(torch.uint8)), f"step {plan.step_id} wrote elsewhere"
        seen.append((plan.num_decodes, len(plan.spans)))
        return flight

    monkeypatch.setattr(engine._runner, "launch", watched)
    return seen
