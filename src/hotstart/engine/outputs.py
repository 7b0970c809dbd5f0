"""What `LLM.generate` returns, shaped as vLLM's results are, and how token events become it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hotstart.errors import HotstartError
from hotstart.request import FinishReason, PositionLogprobs, Request, TokenEvent
from hotstart.text.detokenizer import Detokenizer
from hotstart.text.stop import StopStrings
from hotstart.text.tokenizer import Tokenizer

__all__ = ["CompletionOutput", "Logprob", "OutputBuilder", "RequestOutput", "output_of"]


class Logprob(NamedTuple):
    """`rank` 1 is the likeliest token of its position."""

    logprob: float
    rank: int
    decoded_token: str | None  # None without a tokenizer


@dataclass(slots=True)
class CompletionOutput:
    """`stop_reason` is the stop string or stop token id that ended the text, None for the model's own end token."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass(slots=True)
class RequestOutput:
    """`error` is set where a step failed under the request: finish_reason is "error", the text what came before."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    error: HotstartError | None = field(default=None, repr=False)


class OutputBuilder:
    """Collects the events of one request.  Without a tokenizer the text stays empty."""

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer | None) -> None:
        params = request.params
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.error: HotstartError | None = None
        self.num_tokens = 0
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, params.skip_special_tokens) if tokenizer else None
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._text: list[str] = []
        self._num_taken = 0
        self.token_ids: list[int] = []
        self.logprobs: list[PositionLogprobs] = []
        self.prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()
        self.num_cached_tokens = 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def push(self, event: TokenEvent) -> None:
        """A stop string ends the request here, while the engine knows nothing of it: the caller aborts it there, and
        whatever the engine still says about it is dropped.
        """
        if self.finished:
            return
        self.prompt_logprobs = self.prompt_logprobs or event.prompt_logprobs
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        shown = []
        for position, token_id in enumerate(event.token_ids):
            self.token_ids.append(token_id)
            self.logprobs += event.logprobs[position : position + 1]
            ends_here = event.stop_token_id is not None and position == len(event.token_ids) - 1
            shown.append(self._show([] if ends_here and not self._shows_stop_token else [token_id]))
            if self._stops.matched is not None:
                self.finish_reason, self.stop_reason = FinishReason.STOP, self._stops.matched
                break
        self.num_tokens = len(self.token_ids)
        if not self.finished and event.finish_reason is not None:
            self._finish(event, shown)
        self._text += shown

    def take_text(self) -> str:
        """The text that may be shown and was not taken yet."""
        text, self._num_taken = "".join(self._text[self._num_taken :]), len(self._text)
        return text

    def output(self) -> RequestOutput:
        wants_logprobs = self.request.params.logprobs is not None
        completion = CompletionOutput(
            index=0,
            text="".join(self._text),
            token_ids=list(self.token_ids),
            cumulative_logprob=sum(position.logprob for position in self.logprobs) if wants_logprobs else None,
            logprobs=[self._by_id(position) for position in self.logprobs] if wants_logprobs else None,
            finish_reason=None if self.finish_reason is None else str(self.finish_reason),
            stop_reason=self.stop_reason,
        )
        prompt_logprobs = [None if position is None else self._by_id(position) for position in self.prompt_logprobs]
        return RequestOutput(
            request_id=self.request.id,
            prompt=self._prompt,
            prompt_token_ids=list(self.request.prompt_token_ids),
            prompt_logprobs=prompt_logprobs if self.request.params.prompt_logprobs is not None else None,
            outputs=[completion],
            finished=self.finished,
            num_cached_tokens=self.num_cached_tokens,
            error=self.error,
        )

    @property
    def _shows_stop_token(self) -> bool:
        return self.request.params.include_stop_str_in_output

    def _show(self, token_ids: Sequence[int]) -> str:
        text = self._detokenizer.push(token_ids) if self._detokenizer else ""
        # What min_tokens forces out is not searched: the request could not have ended there.
        return self._stops.push(text) if len(self.token_ids) > self.request.params.min_tokens else text

    def _finish(self, event: TokenEvent, shown: list[str]) -> None:
        params = self.request.params
        eos = self._tokenizer.eos_token_id if self._tokenizer and not params.ignore_eos else None
        self.finish_reason, self.error = event.finish_reason, event.error
        if event.stop_token_id in params.stop_token_ids and event.stop_token_id != eos:
            self.stop_reason = event.stop_token_id
        shown.append(self._stops.push(self._detokenizer.finish() if self._detokenizer else ""))
        shown.append(self._stops.finish())

    def _by_id(self, position: PositionLogprobs) -> dict[int, Logprob]:
        """The token that stands there first, then the likeliest."""
        ranks = {position.token_id: (position.logprob, position.rank)}
        for rank, (token_id, logprob) in enumerate(zip(position.top_ids, position.top_logprobs, strict=True), 1):
            ranks.setdefault(token_id, (logprob, rank))
        text = self._tokenizer.token_text if self._tokenizer else lambda _: None
        return {token_id: Logprob(logprob, rank, text(token_id)) for token_id, (logprob, rank) in ranks.items()}


def output_of(choices: Sequence[OutputBuilder]) -> RequestOutput:
    """All answers to one prompt."""
    outputs = [builder.output() for builder in choices]
    for index, output in enumerate(outputs):
        output.outputs[0].index = index
    first = outputs[0]
    return replace(
        first,
        outputs=[output.outputs[0] for output in outputs],
        finished=all(output.finished for output in outputs),
        error=next((output.error for output in outputs if output.error), None),
    )
