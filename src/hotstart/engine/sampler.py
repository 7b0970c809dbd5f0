"""From hidden states to tokens and log-probabilities, in slabs of rows: logits never take more than one slab."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotstart.engine.device import Device, Fetched
from hotstart.engine.inputs import BuiltStep
from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import SpanResult, StepPlan, StepResult
from hotstart.engine.rows import PromptRows, SampleRows
from hotstart.kernels.ops import Ops
from hotstart.kernels.sampling import TokenLogprobs, token_logprobs
from hotstart.kernels.step import StepInputs
from hotstart.request import MAX_LOGPROBS, PositionLogprobs

__all__ = ["Sampled", "Sampler"]


class Sampler:
    """`last_tokens` keeps, by slot, the token that each sequence sampled last: the next step may read it there."""

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],  # (hidden rows [R, D]) -> [R, vocab]
        ops: Ops,
        limits: StepLimits,
        device: Device,
    ) -> None:
        self._logits = logits
        self._ops = ops
        self._num_alternatives = min(MAX_LOGPROBS, limits.vocab_size)
        self._slab_rows = limits.slab_rows
        # One more than there are slots: where rows of padding write.
        self.last_tokens = device.arena.allocate("sampling", (limits.num_slots + 1,), torch.int32)
        # By slot and position: tokens of sequences that pay for tokens which came before.
        self._history = device.arena.allocate("sampling", (limits.num_slots, limits.max_model_len), torch.int32)
        self._landing = device.landing(_landing_bytes(limits, self._num_alternatives))

    def fill_tokens(self, step: StepInputs) -> None:
        """Put the tokens that are still on the device where the plan could only say IN_FLIGHT."""
        slots = step.decode.read_slots  # -1, in rows of padding too, reads the row that padding writes
        ids = step.token_ids[: slots.shape[0]]
        last = self.last_tokens[slots]
        ids.copy_(torch.where(ids < 0, last, ids))

    def draw(self, built: BuiltStep, hidden: Tensor, logprobs: list[TokenLogprobs] | None = None) -> Tensor | None:
        """The tokens of the spans that sample one, and beside them what they want to know."""
        rows, tokens = built.inputs.logit_rows, []
        for number, slab in enumerate(built.samples.slabs):
            at = number * self._slab_rows
            logits = self._logits(hidden.index_select(0, rows[at : at + len(slab.temperature)]))
            tokens.append(self._ops.sample(logits, slab, self._history))
            if logprobs is not None and built.samples.logprobs is not None:
                logprobs.append(token_logprobs(logits, tokens[-1], self._num_alternatives))
        if not tokens:
            return None
        drawn = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        self.last_tokens.index_copy_(0, built.samples.slots, drawn.int())
        return drawn

    def run(self, hidden: Tensor, built: BuiltStep, drawn: Tensor | None = None) -> "Sampled":
        """hidden: [T, D].  Every slab is the same work, whatever its rows are for.  `drawn`: tokens, if a graph has
        made them already."""
        logprobs: list[TokenLogprobs] = []
        if drawn is None:
            built.masks.upload()
            if built.samples.records is not None:
                self._ops.record(self._history, built.inputs.token_ids, built.samples.records)
            drawn = self.draw(built, hidden, logprobs)
        num_chosen = len(logprobs)
        if built.prompts is not None:
            rows = built.inputs.logit_rows[len(built.samples.slots) :]
            slabs = torch.split(rows, self._slab_rows), torch.split(built.prompts.targets, self._slab_rows)
            for some, ids in zip(*slabs, strict=True):
                logits = self._logits(hidden.index_select(0, some))
                logprobs.append(token_logprobs(logits, ids, self._num_alternatives))
        left = [] if drawn is None else [drawn]
        left += [getattr(slab, name) for slab in logprobs for name in _FIELDS]
        return Sampled(built.samples, built.prompts, num_chosen, self._landing.fetch(left))


_FIELDS = ("logprob", "rank", "top_ids", "top_logprobs")


def _landing_bytes(limits: StepLimits, num_alternatives: int) -> int:
    """A bound on what any step leaves, with a gap after each tensor."""
    rows = limits.max_num_seqs + limits.max_num_batched_tokens + 2 * limits.slab_rows
    num_tensors = (1 + len(_FIELDS)) * (rows // limits.slab_rows + 2)
    return rows * (8 + 4 + 8 + 12 * num_alternatives) + 256 * num_tensors


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step leaves on the device: tokens; then by slab, log-probabilities of samples, and of prompts."""

    samples: SampleRows
    prompts: PromptRows | None
    num_chosen: int  # slabs of samples that have log-probabilities: all or none
    fetched: Fetched

    def result(self, plan: StepPlan) -> StepResult:
        """Read it on the host: this waits for the device."""
        parts = self.fetched.wait()
        drawn, rest = (parts[0].tolist(), parts[1:]) if self.samples.slabs else ([], parts)
        token_ids = dict(zip(self.samples.spans, drawn, strict=False))
        logprobs = self._sample_logprobs(plan, token_ids, _rows(rest[: len(_FIELDS) * self.num_chosen]))
        prompt_logprobs = self._prompt_logprobs(plan, _rows(rest[len(_FIELDS) * self.num_chosen :]))
        return StepResult(
            plan.step_id,
            tuple(
                SpanResult(token_ids.get(index), logprobs.get(index), prompt_logprobs.get(index, ()))
                for index in range(len(plan.spans))
            ),
        )

    def _sample_logprobs(
        self, plan: StepPlan, token_ids: dict[int, int], rows: "list[_Row]"
    ) -> dict[int, PositionLogprobs]:
        answers = {}
        for index, row in zip(self.samples.spans, rows, strict=False):
            sampling = plan.spans[index].sampling
            if sampling is not None and sampling.logprobs is not None:
                answers[index] = _position(token_ids[index], row, sampling.logprobs)
        return answers

    def _prompt_logprobs(self, plan: StepPlan, rows: "list[_Row]") -> dict[int, tuple[PositionLogprobs, ...]]:
        if self.prompts is None:
            return {}
        positions = zip(self.prompts.target_ids, rows, strict=False)
        answers = {}
        for index, count in self.prompts.spans:
            wanted = plan.spans[index].prompt_logprobs or 0
            answers[index] = tuple(_position(*next(positions), wanted) for _ in range(count))
        return answers


_Row = tuple[float, int, list[int], list[float]]


def _rows(parts: Sequence[Tensor]) -> list[_Row]:
    """parts: the fields of one slab after the other."""
    slabs = [parts[i : i + len(_FIELDS)] for i in range(0, len(parts), len(_FIELDS))]
    return [row for slab in slabs for row in zip(*(part.tolist() for part in slab), strict=True)]


def _position(token_id: int, row: _Row, wanted: int) -> PositionLogprobs:
    logprob, rank, top_ids, top_logprobs = row
    return PositionLogprobs(token_id, logprob, rank, tuple(top_ids[:wanted]), tuple(top_logprobs[:wanted]))
