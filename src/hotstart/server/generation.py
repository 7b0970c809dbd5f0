"""Generation: the answers of one HTTP request while they grow.  Closing it aborts what is unfinished."""

import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from hotstart import log
from hotstart.engine.outputs import OutputBuilder
from hotstart.request import FinishReason, PositionLogprobs, Request, SamplingParams, TokenEvent
from hotstart.server.answers import CompletionDetails, PromptDetails, Usage
from hotstart.server.errors import ApiError, api_error_of
from hotstart.server.metrics import Moments
from hotstart.server.service import Service

__all__ = ["Choice", "Generation", "Wish"]

LEAST_LOGPROB = -9999.0
Wish = tuple[tuple[int, ...], SamplingParams]  # a prompt, and how one answer to it is sampled


class Choice:
    """One answer; what `take_...` gives, it gives once."""

    def __init__(self, number: int, builder: OutputBuilder) -> None:
        self.number = number
        self.builder = builder
        self.admitted_time: float | None = None
        self.first_token_time: float | None = None
        self.last_token_time: float | None = None
        self.num_pieces = 0  # that were sent
        self.logprobs_offset = 0  # of the next token, in characters
        self._num_ids_taken = 0
        self._num_logprobs_taken = 0

    @property
    def finish_reason(self) -> str | None:
        reason = self.builder.finish_reason
        return None if reason is None else str(reason)

    @property
    def stop_reason(self) -> int | str | None:
        return self.builder.stop_reason

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self.builder.request.prompt_token_ids

    def take_text(self) -> str:
        return self.builder.take_text()

    def take_ids(self) -> list[int]:
        new = self.builder.token_ids[self._num_ids_taken :]
        self._num_ids_taken += len(new)
        return new

    def take_logprobs(self) -> list[PositionLogprobs]:
        new = self.builder.logprobs[self._num_logprobs_taken :]
        self._num_logprobs_taken += len(new)
        return [_finite(position) for position in new]


def _finite(position: PositionLogprobs) -> PositionLogprobs:
    """JSON has no number for what a grammar has ruled out."""
    lowest = min((position.logprob, *position.top_logprobs))
    if lowest >= LEAST_LOGPROB:
        return position
    top = tuple(max(logprob, LEAST_LOGPROB) for logprob in position.top_logprobs)
    return replace(position, logprob=max(position.logprob, LEAST_LOGPROB), top_logprobs=top)


class Generation:
    """Use it as a context manager."""

    def __init__(self, service: Service, request_id: str, wishes: Sequence[Wish], n: int) -> None:
        """`wishes` holds n for each prompt.  Raises an ApiError if the engine cannot take all of them."""
        self._metrics = service.metrics
        self._tell = log.info if service.is_open else log.debug  # start-up asks, too
        self._looks_up = service.ready.limits.enable_prefix_caching
        self._n = n
        self._request_id = request_id
        self._began = time.monotonic()
        self._error: ApiError | None = None
        self._submission = service.submit(wishes)
        tokenizer = service.edge.tokenizer
        requests = [Request(request_id, ids, params, self._began) for ids, params in wishes]
        self.choices = [Choice(n, OutputBuilder(request, None, tokenizer)) for n, request in enumerate(requests)]
        self._num_unfinished = len(self.choices)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._submission.close()
        self._record()

    @property
    def finished(self) -> bool:
        return not self._num_unfinished

    async def grow(self, timeout_s: float | None = None) -> list[Choice]:
        """The choices that have grown, in the order of their numbers; none after the timeout.

        Raises an ApiError for what befell any of them.
        """
        grown = set()
        for number, event, now in await self._submission.batch(timeout_s):
            choice = self.choices[number]
            if choice.builder.finished:  # at a stop string, which the engine did not see
                continue
            choice.builder.push(event)
            if event.token_ids:
                self._count_token(choice, event, now)
            grown.add(number)
            if event.error is not None:
                self._error = api_error_of(event.error)
                self._end(choice, now, "error")
                raise self._error
            # The engine may not know: a stop string is found here.
            if choice.builder.finished:
                self._num_unfinished -= 1
                self._submission.abort(number)
                self._end(choice, now, str(choice.builder.finish_reason))
        return [self.choices[number] for number in (sorted(grown) if len(grown) > 1 else grown)]

    async def complete(self) -> None:
        while not self.finished:
            await self.grow()

    def usage(self, num_reasoning_tokens: int = 0) -> Usage:
        prompts = self.choices[:: self._n]
        num_prompt = sum(len(choice.prompt_token_ids) for choice in prompts)
        num_answer = sum(choice.builder.num_tokens for choice in self.choices)
        num_cached = sum(choice.builder.num_cached_tokens for choice in prompts)
        return Usage(
            num_prompt,
            num_answer,
            num_prompt + num_answer,
            PromptDetails(num_cached),
            CompletionDetails(num_reasoning_tokens),
        )

    def _count_token(self, choice: Choice, event: TokenEvent, now: float) -> None:
        metrics, before = self._metrics, choice.last_token_time
        metrics.num_generation_tokens += len(event.token_ids)
        choice.last_token_time = now
        if before is not None:
            metrics.between.observe(now - before)
            return
        choice.admitted_time, choice.first_token_time = event.admitted_time, now
        num_prompt = len(choice.prompt_token_ids)
        metrics.first_token(now - self._began, num_prompt, event.num_cached_tokens, self._looks_up)

    def _end(self, choice: Choice, now: float, reason: str) -> None:
        moments = Moments(self._began, choice.admitted_time, choice.first_token_time, now)
        self._metrics.ended_answer(choice.builder, moments, reason)

    def _record(self) -> None:
        now = time.monotonic()
        first = self.choices[0].first_token_time
        reasons = [choice.finish_reason or str(FinishReason.ABORT) for choice in self.choices]
        for choice in self.choices:
            if not choice.builder.finished:
                self._end(choice, now, "error" if self._error else "abort")
        self._metrics.ended_request(max(choice.builder.num_tokens for choice in self.choices))
        self._tell(
            "request",
            id=self._request_id,
            finish=",".join(dict.fromkeys(reasons)),
            prompt_tokens=len(self.choices[0].prompt_token_ids),
            tokens=sum(choice.builder.num_tokens for choice in self.choices),
            first_token_ms="-" if first is None else (first - self._began) * 1e3,
            total_ms=(now - self._began) * 1e3,
        )
