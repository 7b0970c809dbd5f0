"""What a user asks for and what comes back, in plain Python (no torch here)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, Self

from hotstart.errors import HotstartError, InvalidSamplingParams

__all__ = ["FinishReason", "PositionLogprobs", "Request", "SamplingParams", "StructuredOutputsParams", "TokenEvent"]

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 300
MAX_BAD_WORDS = 128
MAX_BAD_WORD_TOKENS = 1024  # of all of them together
MAX_ALLOWED_TOKEN_IDS = 2**16
MAX_CHOICES = 128
MAX_GRAMMAR_CHARACTERS = 2**18
SEED_STEP = 0x9E3779B97F4A7C15  # the golden ratio's bits: seeds of choices lie far apart


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What an answer must be, as one of these: JSON that a schema describes, or any object; text of a regular
    expression; one of several texts; text of a grammar (Lark's or GBNF's notation).  Names are vLLM's.

    With `after`, the answer is free until it has said that, and does not end before; line ends may follow it.  Raises
    InvalidSamplingParams; whether a schema, an expression or a grammar can be followed is known when it is compiled.
    """

    json: str | dict[str, Any] | None = field(default=None, hash=False)
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool = False
    after: str | None = None

    def __post_init__(self) -> None:
        if self.choice is not None:
            object.__setattr__(self, "choice", tuple(self.choice))
        kinds = ("json", "regex", "choice", "grammar")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) + self.json_object != 1:
            names = ", ".join(given + ["json_object"] * self.json_object) or "none"
            raise InvalidSamplingParams(
                f"structured_outputs names {names}; it must be exactly one of {', '.join(kinds)}, json_object"
            )
        for name in ("regex", "grammar", "after"):
            if not isinstance(getattr(self, name), str | None) or getattr(self, name) == "":
                raise InvalidSamplingParams(f"structured_outputs.{name} must be a text that is not empty")
        if self.choice is not None and not (self.choice and all(isinstance(c, str) and c for c in self.choice)):
            raise InvalidSamplingParams("structured_outputs.choice must hold texts that are not empty")
        if not isinstance(self.json, str | dict | None):
            raise InvalidSamplingParams("structured_outputs.json must be a JSON schema, as an object or as text")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen.  Field names and meanings are vLLM's.

    `temperature` 0 is greedy.  `top_k` 0 or -1 means all tokens.  `seed` makes a request repeatable whatever its
    neighbours are; without one the engine draws a seed.  `logprobs` and `prompt_logprobs` ask for that many
    alternatives a position (0: the chosen token alone); they are of the raw logits, before anything below.

    What happens to logits, in this order: `repetition_penalty` divides positive ones and multiplies negative ones of
    tokens that stand in the prompt or the answer; `frequency_penalty` times their number in the answer and
    `presence_penalty` are subtracted; `logit_bias` is added; tokens that would complete one of `bad_words` are banned;
    of all others `allowed_token_ids` alone are left; then temperature, `min_p` (against the likeliest token), `top_k`,
    `top_p`.  A ban gives way where nothing else is left.  `bad_word_ids` are `bad_words` as tokens, which whoever has
    the tokenizer fills in.  What `structured_outputs` rules out is ruled out first of all: log-probabilities are of
    what it leaves.  Raises InvalidSamplingParams.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = field(default=None, hash=False)
    bad_words: tuple[str, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "bad_words", tuple(self.bad_words))
        object.__setattr__(self, "bad_word_ids", tuple(map(tuple, self.bad_word_ids)))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(self.allowed_token_ids))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        self._check()
        self._check_penalties()
        self._check_tokens()

    @property
    def counts_tokens(self) -> bool:
        """Whether the logits depend on how often tokens have come."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def choices(self) -> list[Self]:
        """The same wishes n times, each for one answer; with a seed, each has one of its own that follows from it."""
        if self.n == 1:
            return [self]
        one = replace(self, n=1)
        if self.seed is None:
            return [one] * self.n
        return [replace(one, seed=_signed(self.seed + number * SEED_STEP)) for number in range(self.n)]

    def check_vocabulary(self, size: int) -> None:
        """Raises InvalidSamplingParams for a token id beyond it."""
        words = (token_id for word in self.bad_word_ids for token_id in word)
        for name, ids in (
            ("stop_token_ids", self.stop_token_ids),
            ("logit_bias", self.logit_bias or ()),
            ("bad_words", words),
            ("allowed_token_ids", self.allowed_token_ids or ()),
        ):
            largest = max(ids, default=0)
            if largest >= size:
                raise InvalidSamplingParams(f"{name} holds {largest}, ids must be in [0, {size - 1}]")

    def _check(self) -> None:
        _check_int("n", self.n, 1, MAX_CHOICES)
        _check_number("temperature", self.temperature, 0.0, 100.0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidSamplingParams("top_p is 0.0, it must be in (0, 1]; use temperature=0 for greedy decoding")
        _check_int("top_k", self.top_k, 0, 2**31 - 1)
        _check_int("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise InvalidSamplingParams(
                    f"min_tokens is {self.min_tokens}, more than max_tokens {self.max_tokens}; lower it"
                )
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**63 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0, MAX_LOGPROBS)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidSamplingParams(f"{len(self.stop)} stop strings, at most {MAX_STOP_STRINGS} are accepted")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidSamplingParams(f"stop holds {text!r}; every stop string must be a non-empty string")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidSamplingParams(
                f"{len(self.stop_token_ids)} stop_token_ids, at most {MAX_STOP_TOKEN_IDS} are accepted"
            )
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, 0, 2**31 - 1)

    def _check_penalties(self) -> None:
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 100.0)
        if self.repetition_penalty == 0.0:
            raise InvalidSamplingParams("repetition_penalty is 0.0, it must be above; 1.0 changes nothing")
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)

    def _check_tokens(self) -> None:
        """What is said of single tokens."""
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise InvalidSamplingParams(f"logit_bias is a {type(self.logit_bias).__name__}, expected a mapping")
            _check_count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS)
            for token_id, bias in self.logit_bias.items():
                _check_int("logit_bias", token_id, 0, 2**31 - 1)
                _check_number("logit_bias", bias, -100.0, 100.0)
        _check_count("bad_words", len(self.bad_words), MAX_BAD_WORDS)
        for text in self.bad_words:
            if not isinstance(text, str) or not text:
                raise InvalidSamplingParams(f"bad_words holds {text!r}; every word must be a non-empty string")
        _check_count("bad_words", len(self.bad_word_ids), 2 * MAX_BAD_WORDS)
        _check_count("bad_words", sum(map(len, self.bad_word_ids)), MAX_BAD_WORD_TOKENS, "tokens")
        for ids in self.bad_word_ids:
            if not ids:
                raise InvalidSamplingParams("bad_words holds an empty word; leave it away")
            for token_id in ids:
                _check_int("bad_words", token_id, 0, 2**31 - 1)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise InvalidSamplingParams("allowed_token_ids is empty; name at least one, or leave it away")
            _check_count("allowed_token_ids", len(self.allowed_token_ids), MAX_ALLOWED_TOKEN_IDS)
            if self.structured_outputs is not None:
                raise InvalidSamplingParams("allowed_token_ids and structured_outputs exclude each other; give one")
            for token_id in self.allowed_token_ids:
                _check_int("allowed_token_ids", token_id, 0, 2**31 - 1)


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _check_count(name: str, count: int, limit: int, what: str = "entries") -> None:
    if count > limit:
        raise InvalidSamplingParams(f"{name} has {count} {what}, at most {limit} are accepted")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidSamplingParams(f"{name} is {value!r}, it must be a finite number in [{low:g}, {high:g}]")
    if not low <= value <= high:
        raise InvalidSamplingParams(f"{name} is {value!r}, it must be in [{low:g}, {high:g}]")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSamplingParams(f"{name} is {value!r}, it must be an integer in [{low}, {high}]")
    if not low <= value <= high:
        raise InvalidSamplingParams(f"{name} is {value}, it must be in [{low}, {high}]")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt on its way to the engine; ids are inside the vocabulary."""

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    arrival_time: float  # time.monotonic()


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log-probabilities at one position: the token that stands there, its rank (1 is likeliest), the likeliest."""

    token_id: int
    logprob: float
    rank: int
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


class TokenEvent(NamedTuple):
    """What one step did for one request.  Every request ends with an event that has a finish reason."""

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()  # one for each token id, if asked for
    prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()  # all positions at once, None for the first
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it, which is in token_ids too
    error: HotstartError | None = None
    num_cached_tokens: int = 0  # of the prompt: what the prefix cache spared this request
    admitted_time: float | None = None  # time.monotonic() of its first step; told with the first token
