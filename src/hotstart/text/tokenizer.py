"""Tokenizer: text to token ids and back, from the checkpoint's own tokenizer.json."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders

from hotstart.config.files import read_optional_json, read_text
from hotstart.errors import CheckpointError, InvalidPrompt, UnsupportedModel

__all__ = ["Tokenizer", "special_tokens_of"]


def _byte_of_char() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable Latin-1 stands for itself, the other bytes follow from U+0100 on.

    Source: Radford et al. 2019 (GPT-2), whose encoder gave every byte a visible character.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


class Tokenizer:
    """A byte-level BPE tokenizer.  Raises CheckpointError for missing or corrupt files."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist; fetch it, or give token ids (in Python, with skip_tokenizer_init=True)"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(read_text(path))
        except CheckpointError:
            raise
        except Exception as error:  # the library has no type of its own for this
            raise CheckpointError(f"{path} is no tokenizer: {error}; fetch it again") from error
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            kind = type(self._tokenizer.decoder).__name__
            raise UnsupportedModel(f"{path}: its decoder is {kind}; only byte-level BPE is implemented")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bytes: dict[int, bytes] = {}
        self.special_tokens = special_tokens_of(read_optional_json(folder / "tokenizer_config.json"))
        self.eos_token_id: int | None = self._tokenizer.token_to_id(self.special_tokens.get("eos_token", ""))

    def __len__(self) -> int:
        """Number of known tokens, added ones included; a model's vocabulary may be padded beyond it."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def longest_token_bytes(self) -> int:
        """No token stands for more, so that a text is known to be too long before it is encoded."""
        return max(len(self.token_bytes(token_id)) for token_id in range(len(self)))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids.  Special tokens written out in the text become their ids; a rendered chat needs no others."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidPrompt(f"the text holds a lone surrogate at character {error.start}; remove it") from error
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """One token alone, as logprobs show it; a part of a character reads as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; none for an id beyond the tokenizer's vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._tokenizer.id_to_token(token_id) or ""
            in_alphabet = all(char in _BYTE_OF_CHAR for char in token)
            known = bytes(_BYTE_OF_CHAR[char] for char in token) if in_alphabet else token.encode()
            self._bytes[token_id] = known
        return known


def special_tokens_of(config: dict[str, Any]) -> dict[str, str]:
    """`eos_token` and its kin as text; a chat template may use them by name."""
    names = [name for name in config if name.endswith("_token")]
    values = {name: config[name] for name in names}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in values.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
