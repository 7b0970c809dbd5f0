"""From a request's fields to SamplingParams, with what the checkpoint recommends where a field is left open."""

from dataclasses import replace
from typing import Any

from hotstart.errors import InvalidPrompt, InvalidSamplingParams
from hotstart.request import SamplingParams, StructuredOutputsParams
from hotstart.server.errors import api_error_of, bad_request
from hotstart.server.schemas import SamplingFields
from hotstart.server.service import Service
from hotstart.text.bad_words import bad_word_ids
from hotstart.text.tokenizer import Tokenizer

__all__ = ["params_of"]

COPIED = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "seed",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
)


def params_of(
    service: Service,
    fields: SamplingFields,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    shape: StructuredOutputsParams | None,
) -> SamplingParams:
    """Raises an ApiError that names the field."""
    wishes: dict[str, Any] = {name: getattr(fields, name) for name in COPIED}
    tokenizer = service.edge.tokenizer
    if fields.bad_words:
        wishes["bad_word_ids"] = _bad_word_ids(fields.bad_words, tokenizer)
    wishes["stop"] = (fields.stop,) if isinstance(fields.stop, str) else fields.stop
    stops = set(fields.stop_token_ids or ())
    if tokenizer.eos_token_id is not None and not fields.ignore_eos:
        # The tokenizer's end token may be none of those that the model's config names.
        stops.add(tokenizer.eos_token_id)
    wishes["stop_token_ids"] = tuple(sorted(stops))
    given = {name: value for name, value in wishes.items() if value is not None}
    try:
        params = replace(
            service.edge.defaults,
            **given,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            structured_outputs=shape,
        )
        params.check_vocabulary(service.ready.vocab_size)
    except InvalidSamplingParams as error:
        raise api_error_of(error) from None
    return params


def _bad_word_ids(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    try:
        return bad_word_ids(words, tokenizer)
    except InvalidPrompt as error:
        raise bad_request(str(error), "bad_words") from None
