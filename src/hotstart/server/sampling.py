"""From a request's fields to SamplingParams, with what the checkpoint recommends where a field is left open."""

from dataclasses import replace
from typing import Any

from hotstart.errors import InvalidPrompt, InvalidSamplingParams
from hotstart.request import SamplingParams, StructuredOutputsParams
from hotstart.server.errors import api_error_of, bad_request
from hotstart.server.schemas import SamplingFields
from hotstart.server.service import Service
from hotstart.text.params import with_tokens

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
    "stop",
    "stop_token_ids",
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
        params = with_tokens(params, service.edge.tokenizer)
        params.check_vocabulary(service.ready.vocab_size)
    except InvalidSamplingParams as error:
        raise api_error_of(error) from None
    except InvalidPrompt as error:
        raise bad_request(str(error), "bad_words") from None
    return params
