"""Detokenizer: the text of a growing list of token ids, one increment at a time.

A token of byte-level BPE is a run of bytes that may end inside a character.  Bytes of an unfinished character are held
back, so the increments always join to what decoding all ids at once gives.
"""

from codecs import getincrementaldecoder
from collections.abc import Iterable

from hotstart.text.tokenizer import Tokenizer

__all__ = ["Detokenizer"]

_Utf8Decoder = getincrementaldecoder("utf-8")


class Detokenizer:
    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped: frozenset[int] = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = _Utf8Decoder(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The characters that these ids complete."""
        token_bytes, skipped = self._tokenizer.token_bytes, self._skipped
        return self._decoder.decode(b"".join([token_bytes(i) for i in token_ids if i not in skipped]))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for bytes that never became a character, else nothing."""
        return self._decoder.decode(b"", final=True)
