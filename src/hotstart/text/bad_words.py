"""Bad words as tokens: a word is written at the beginning of a text or after a space, and both ways are tokens."""

from collections.abc import Iterable

from hotstart.text.tokenizer import Tokenizer

__all__ = ["bad_word_ids"]


def bad_word_ids(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Raises InvalidPrompt for a word that is no text."""
    found: list[tuple[int, ...]] = []
    for word in words:
        bare, spaced = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (word, f" {word.lstrip()}"))
        found.append(bare)
        # If it only has a space in front of the same tokens, those are banned already.
        if spaced[-len(bare) :] != bare:
            found.append(spaced)
    return tuple(dict.fromkeys(ids for ids in found if ids))
