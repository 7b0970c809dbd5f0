"""What a user asks for and what comes back, in plain Python (no torch here)."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from hotstart.errors import HotstartError, InvalidSamplingParams

__all__ = ["FinishReason", "PositionLogprobs", "Request", "SamplingParams", "TokenEvent"]

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 128


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen.  Field names and meanings are vLLM's.

    `temperature` 0 is greedy.  `top_k` 0 or -1 means all tokens.  `seed` makes a request repeatable whatever its
    neighbours are; without one the engine draws a seed.  `logprobs` and `prompt_logprobs` ask for that many
    alternatives a position (0: the chosen token alone).  Raises InvalidSamplingParams.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
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
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        self._check()

    def _check(self) -> None:
        _check_number("temperature", self.temperature, 0.0, 100.0)
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
