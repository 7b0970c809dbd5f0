"""SamplingParams with what only the tokenizer knows: its end token, and bad words as tokens."""

from dataclasses import replace

from hotstart.request import SamplingParams
from hotstart.text.bad_words import bad_word_ids
from hotstart.text.tokenizer import Tokenizer

__all__ = ["with_tokens"]


def with_tokens(params: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """Raises InvalidPrompt for a bad word that is no text, InvalidSamplingParams for too many."""
    stops, eos = params.stop_token_ids, tokenizer.eos_token_id
    if eos is not None and not params.ignore_eos:  # which may be none of those that the model's config names
        stops = tuple(sorted({*stops, eos}))
    banned = bad_word_ids(params.bad_words, tokenizer) if params.bad_words else params.bad_word_ids
    return replace(params, stop_token_ids=stops, bad_word_ids=banned)
