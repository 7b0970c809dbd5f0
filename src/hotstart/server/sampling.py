"""From a request's fields to SamplingParams, with what the checkpoint recommends where a field is left open."""

from dataclasses import replace
from typing import Any

from hotstart.errors import InvalidSamplingParams
from hotstart.request import SamplingParams
from hotstart.server.errors import ApiError, api_error_of, bad_request
from hotstart.server.schemas import ResponseFormat, SamplingFields

__all__ = ["choices_of", "params_of"]

# Values that change nothing, of fields that the engine does not have.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_p": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "frequency_penalty": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "logit_bias": (None, {}),
    "bad_words": (None, []),
    "allowed_token_ids": (None,),
    "response_format": (None, ResponseFormat("text")),
    "structured_outputs": (None, {}),
}
COPIED = ("temperature", "top_p", "top_k", "seed", "min_tokens", "ignore_eos", "skip_special_tokens")
SEED_STEP = 0x9E3779B97F4A7C15  # the golden ratio's bits: seeds of choices lie far apart


def params_of(
    fields: SamplingFields,
    defaults: SamplingParams,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    end_token_id: int | None,
) -> SamplingParams:
    """Raises an ApiError that names the field."""
    refuse_unsupported(fields, NEUTRAL)
    wishes: dict[str, Any] = {name: getattr(fields, name) for name in COPIED}
    wishes["include_stop_str_in_output"] = fields.include_stop_str_in_output
    wishes["stop"] = (fields.stop,) if isinstance(fields.stop, str) else fields.stop
    stops = set(fields.stop_token_ids or ())
    if end_token_id is not None and not fields.ignore_eos:
        # The tokenizer's end token may be none of those that the model's config names.
        stops.add(end_token_id)
    wishes["stop_token_ids"] = tuple(sorted(stops))
    given = {name: value for name, value in wishes.items() if value is not None}
    try:
        return replace(defaults, **given, max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
    except InvalidSamplingParams as error:
        raise api_error_of(error) from None


def choices_of(params: SamplingParams, n: int) -> list[SamplingParams]:
    """The same wishes n times; with a seed, each choice has one of its own that follows from it."""
    if params.seed is None:
        return [params] * n
    return [replace(params, seed=_signed(params.seed + number * SEED_STEP)) for number in range(n)]


def refuse_unsupported(fields: SamplingFields, neutral: dict[str, tuple[Any, ...]]) -> None:
    for name, harmless in neutral.items():
        if getattr(fields, name) not in harmless:
            raise _unsupported(name)


def _unsupported(name: str) -> ApiError:
    return bad_request(f"{name} is not implemented in this version; leave it away", name, "unsupported_parameter")


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63
