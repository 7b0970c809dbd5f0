"""Sequence: a request's progress.  The scheduler alone writes it.

Steps are planned before earlier ones have come back, so two lengths are kept: `num_computed <= num_planned`.  The
token that a step in flight samples stands in `tokens` as IN_FLIGHT until its result is applied.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto

from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Penalties, Sampling, Span
from hotstart.request import PositionLogprobs, Request

__all__ = ["Sequence", "Status", "token_bits"]

_NOTHING = (None, None)


class Status(Enum):
    WAITING = auto()  # never ran yet, or was preempted
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    id: int  # counts up: a smaller id has waited longer
    request: Request
    seed: int
    end_ids: frozenset[int]  # a sampled token among these ends the sequence
    max_length: int  # prompt and answer together
    tokens: list[int]
    keys: tuple[bytes, ...] = ()  # the prompt's blocks as the prefix index knows them
    status: Status = Status.WAITING
    num_planned: int = 0
    num_computed: int = 0
    num_flights: int = 0  # steps in flight that hold a span of it
    pages: tuple[int, ...] = ()  # immutable, so that the spans of many steps share it
    slot: int = NO_SLOT
    state_slot: int = NO_SLOT  # where the state after the planned tokens is: its slot, a snapshot's, or nowhere yet
    snapshots_at: tuple[int, ...] = ()  # where a snapshot is wanted, ascending
    num_cached: int | None = None  # tokens of the prompt found in the cache when it first ran
    admitted_time: float | None = None  # time.monotonic() when it first ran
    is_broken: bool = False  # a step of it failed: later ones in flight leave garbage
    prompt_logprobs: list[PositionLogprobs | None] = field(default_factory=lambda: [None])
    penalties: Penalties | None = None  # while it has a slot
    banned_ids: tuple[int, ...] = field(init=False)
    bias: tuple[tuple[int, float], ...] = field(init=False)
    allowed: bytes | None = field(init=False)
    is_guided: bool = field(init=False)
    waits: bool = field(init=False)  # what it asks of the next token depends on the token before it

    def __post_init__(self) -> None:
        params = self.request.params
        self.banned_ids = tuple(sorted(self.end_ids))
        self.bias = tuple(sorted((params.logit_bias or {}).items()))
        self.allowed = None if params.allowed_token_ids is None else token_bits(params.allowed_token_ids)
        self.is_guided = params.structured_outputs is not None
        self.waits = any(len(word) > 1 for word in params.bad_word_ids)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_unplanned(self) -> int:
        return len(self.tokens) - self.num_planned

    @property
    def held_slots(self) -> set[int]:
        return {self.slot, self.state_slot} - {NO_SLOT}

    def extend(self, length: int, num_pages: int, write_slot: int) -> Span:
        """Plan the next `length` tokens; a span that reaches the last one samples.  The pages are those it needs."""
        start, end = self.num_planned, self.num_planned + length
        tokens, params = self.tokens, self.request.params
        span = Span(
            self.id,
            start,
            length,
            (tokens[start],) if length == 1 else tuple(tokens[start:end]),
            self.pages if num_pages == len(self.pages) else self.pages[:num_pages],
            self.state_slot,
            write_slot,
            self._sampling(end) if end == len(tokens) else None,
            *(_NOTHING if params.prompt_logprobs is None else self._prompt_logprobs_wish(start, end)),
            self.penalties,
        )
        if span.sampling is not None:
            tokens.append(IN_FLIGHT)
        self.num_planned = end
        self.state_slot = write_slot
        self.num_flights += 1
        return span

    def _sampling(self, position: int) -> Sampling:
        params = self.request.params
        banned = self.banned_ids if params.min_tokens and position - self.num_prompt < params.min_tokens else ()
        if params.bad_word_ids:
            banned += self._ends_of_bad_words()
        return Sampling(
            params.temperature,
            params.top_k,
            params.top_p,
            self.seed,
            position,
            banned,
            params.logprobs,
            params.min_p,
            self.bias,
            self.allowed,
            self.is_guided,
        )

    def _ends_of_bad_words(self) -> tuple[int, ...]:
        """The last token of each that the answer has all the others of, just now."""
        longest = max(map(len, self.request.params.bad_word_ids)) - 1
        last = self.tokens[max(self.num_prompt, len(self.tokens) - longest) :]
        assert IN_FLIGHT not in last, "a sequence with bad words of several tokens is planned when its tokens are known"
        return tuple(
            word[-1]
            for word in self.request.params.bad_word_ids
            if len(word) - 1 <= len(last) and tuple(last[len(last) - len(word) + 1 :]) == word[:-1]
        )

    def _prompt_logprobs_wish(self, start: int, end: int) -> tuple[int | None, int | None]:
        """How many alternatives the span reports, and the prompt's token after it; nothing is reported twice."""
        wanted = self.request.params.prompt_logprobs
        last = self.num_prompt - 1
        if start >= last or len(self.prompt_logprobs) > min(end, last):
            return None, None
        return wanted, self.tokens[end] if end <= last else None

    def collect(self, start: int, found: tuple[PositionLogprobs, ...]) -> None:
        """Append log-probabilities of positions start + 1 onwards, without those that are known."""
        self.prompt_logprobs.extend(found[len(self.prompt_logprobs) - start - 1 :])

    def settle(self, length: int, pages: tuple[int, ...], slot: int, state_slot: int | None) -> None:
        """Start after `length` tokens that the cache has: their state is in `state_slot`."""
        self.num_planned = self.num_computed = length
        self.pages, self.slot = pages, slot
        self.state_slot = NO_SLOT if state_slot is None else state_slot
        if self.num_cached is None:
            self.num_cached = length
        params = self.request.params
        if params.counts_tokens:
            wish = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
            self.penalties = Penalties(slot, self.num_prompt, *wish)

    def rewind(self) -> None:
        """Forget what was computed, not what was sampled: pages and slot have gone back to their pools."""
        assert self.num_flights == 0, f"a step in flight writes the pages of sequence {self.id}"
        self.num_planned = self.num_computed = 0
        self.pages, self.slot, self.state_slot = (), NO_SLOT, NO_SLOT


def token_bits(token_ids: Collection[int]) -> bytes:
    """Bit t % 8 of byte t // 8 for every token t, as far as the last one."""
    bits = bytearray(max(token_ids) // 8 + 1)
    for token_id in token_ids:
        bits[token_id // 8] |= 1 << token_id % 8
    return bytes(bits)
