"""Runner: a StepPlan goes in, a Flight comes out; waiting for it gives the StepResult."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hotstart.cache.tensors import CacheTensors
from hotstart.engine.graphs import StepGraphs
from hotstart.engine.inputs import BuiltStep, InputBuilder
from hotstart.engine.plan import StepPlan, StepResult
from hotstart.engine.sampler import Sampled, Sampler
from hotstart.kernels.step import StepInputs

__all__ = ["FailedFlight", "Flight", "Forward", "Runner", "StepScope", "in_inference_mode"]

Forward = Callable[[StepInputs, CacheTensors], Tensor]  # a model: the hidden states that are wanted
StepScope = Callable[[int], AbstractContextManager[None]]  # what a step of so many multiplications runs in
# For all that steps run: whatever runs so has run so at start-up too.
in_inference_mode = torch.inference_mode()


@dataclass(slots=True)
class Flight:
    """A step that has been launched; its tokens may be yet to be drawn."""

    plan: StepPlan
    _sampled: Sampled | None
    _draw: Callable[[], Sampled] | None = None
    is_replay: bool = False  # all of it: it took no memory

    def finish(self) -> bool:
        """Launch what is left, now that the results of all earlier steps are known.  Whether anything was."""
        if self._draw is None:
            return False
        draw, self._draw = self._draw, None
        self._sampled = draw()
        return True

    def sync(self) -> None:
        """Until the device has finished it."""
        self._known().fetched.wait()

    def wait(self) -> StepResult:
        return self._known().result(self.plan)

    def _known(self) -> Sampled:
        assert self._sampled is not None, f"step {self.plan.step_id} has not drawn its tokens"
        return self._sampled


@dataclass(frozen=True, slots=True)
class FailedFlight:
    """A step that could not be launched.  It takes its turn: steps land in the order in which they were planned."""

    plan: StepPlan
    error: Exception

    def finish(self) -> bool:
        return False

    def sync(self) -> None:
        raise self.error

    def wait(self) -> StepResult:
        raise self.error


class Runner:
    def __init__(
        self,
        model: Forward,
        num_weights: int,
        inputs: InputBuilder,
        sampler: Sampler,
        step_scope: StepScope,
        cache: CacheTensors,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._graphs = graphs
        self._model = model
        self._num_weights = num_weights
        self._step_scope = step_scope
        self._cache = cache
        self._inputs = inputs
        self._sampler = sampler

    @in_inference_mode
    def launch(self, plan: StepPlan, *, is_alone: bool = True) -> Flight:
        """`is_alone`: no other step is in flight.  If one is, a step of sequences with grammars does not draw before
        `finish`: what may come next is known when the tokens before are.
        """
        built = self._inputs.build(plan)
        draws_later = built.masks.has_grammars and not is_alone
        if not draws_later:
            built.masks.start()
        with self._step_scope(self._num_weights * len(built.inputs.token_ids)):
            hidden = tokens = None
            if self._graphs is not None and built.graph_key is not None:
                hidden = self._graphs.replay(built.graph_key)
                if hidden is not None and built.draws_alone:
                    tokens = self._graphs.replay_draw(built.graph_key, len(built.samples.slots))
            if hidden is None:
                hidden = self._forward(built, fill=built.reads_last_tokens)
            if draws_later:
                return Flight(plan, None, partial(self._draw, hidden, built))
            return Flight(plan, self._sampler.run(hidden, built, tokens), is_replay=tokens is not None)

    @in_inference_mode
    def _draw(self, hidden: Tensor, built: BuiltStep) -> Sampled:
        built.masks.start()
        return self._sampler.run(hidden, built)

    @in_inference_mode
    def capture(self, plan: StepPlan) -> None:
        """Record a step that fills its rung: every later one of its key is a replay."""
        assert self._graphs is not None, "a runner without graphs was asked to capture"
        built = self._inputs.build(plan)
        key = built.graph_key
        assert key is not None and key.tokens == plan.num_tokens, f"{plan.num_tokens} tokens do not fill {key}"
        forward = partial(self._forward, built, fill=not key.is_prompt)
        self._graphs.capture(key, forward, partial(self._sampler.draw, built))

    def _forward(self, built: BuiltStep, *, fill: bool) -> Tensor:
        if fill:
            self._sampler.fill_tokens(built.inputs)
        return self._model(built.inputs, self._cache)
