"""Grammars: what an answer must be, compiled by llguidance for the model's tokenizer.

A matcher says of every token whether it may come next.  Of end tokens it says so only where the answer may end.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from hotstart.config.files import read_json, read_optional_json, read_text
from hotstart.errors import CheckpointError, InvalidSamplingParams
from hotstart.request import MAX_GRAMMAR_CHARACTERS, StructuredOutputsParams
from hotstart.text.tokenizer import special_tokens_of

__all__ = ["JSON_OPTIONS", "GrammarError", "Grammars", "grammar_text"]

MAX_CACHED = 64
MAX_CACHED_CHARACTERS = 2**22  # of their texts; what is compiled is some ten times as large
# Between the parts of JSON one space, or a line's end and an indent: no answer is blanks for ever.
JSON_OPTIONS = {"whitespace_pattern": r"( |\n( {0,24}|\t{0,8}))?"}
# Of JSON Schema: an error may repeat these, and no other words of a client.
_KEYWORDS = re.compile(
    r"\"((?:all|any|one)Of|not|if|then|else|const|enum|type|pattern|format|required|contains|contentEncoding"
    r"|(?:exclusive)?M(?:in|ax)imum|minimum|maximum|m(?:in|ax)(?:Items|Length|Properties|Contains)|multipleOf|uniqueItems"
    r"|(?:additional|unevaluated|prefix)?[iI]tems|(?:additional|unevaluated|pattern)?[pP]roperties|propertyNames"
    r"|dependent(?:Required|Schemas)|\$(?:ref|dynamicRef|anchor))\""
)


class GrammarError(InvalidSamplingParams):
    """`hint` says what is wrong without any of the client's own words."""

    def __init__(self, kind: str, message: str) -> None:
        known = _KEYWORDS.findall(message)
        self.kind = kind
        self.hint = f"it uses {', '.join(known)}, which cannot be followed" if known else "it cannot be followed"
        super().__init__(f"structured_outputs.{kind} cannot be followed: {message}")


class Grammars:
    """Raises CheckpointError where the tokenizer's files are missing or corrupt."""

    def __init__(self, folder: Path, vocab_size: int, end_ids: Iterable[int]) -> None:
        path = folder / "tokenizer.json"
        added = {token["content"]: token["id"] for token in read_json(path).get("added_tokens", ())}
        end = added.get(special_tokens_of(read_optional_json(folder / "tokenizer_config.json")).get("eos_token"))
        self.end_ids = sorted({*end_ids, *(() if end is None else (end,))})
        try:
            # Rows of masks are whole words, of vocabularies that are rarely that.
            padded = -(-vocab_size // 128) * 128
            self.tokenizer = LLTokenizer(read_text(path), n_vocab=padded, eos_token=self.end_ids)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} gives no grammars: {error}; fetch it again") from error
        pieces = [self.tokenizer.tokenize_str(text) for text in ("\n", "\n\n")]
        self.line_ends = frozenset(ids[0] for ids in pieces if len(ids) == 1)
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, wish: StructuredOutputsParams) -> LLMatcher:
        """At the beginning of an answer.  It takes milliseconds, and does not hold the interpreter's lock.

        Raises GrammarError.
        """
        kind, text = grammar_text(wish)
        with self._lock:
            known = self._cache.get(text)
            if known is not None:
                self._cache.move_to_end(text)
                return known.deep_copy()
        made = LLMatcher(self.tokenizer, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if made.is_error():
            raise GrammarError(kind, made.get_error())
        with self._lock:
            self._cache[text] = made
            while len(self._cache) > MAX_CACHED or sum(map(len, self._cache)) > MAX_CACHED_CHARACTERS:
                self._cache.popitem(last=False)
        return made.deep_copy()


def grammar_text(wish: StructuredOutputsParams) -> tuple[str, str]:
    """Which kind it is, and the grammar as llguidance reads it.  Raises GrammarError."""
    kind = next(kind for kind in _READERS if getattr(wish, kind) not in (None, False))
    try:
        source = getattr(wish, kind)
        source = source if isinstance(source, str) else json.dumps(source)
        if len(source) > MAX_GRAMMAR_CHARACTERS:
            message = f"it has {len(source)} characters, at most {MAX_GRAMMAR_CHARACTERS} are read"
            raise GrammarError(kind, message)
        return kind, _READERS[kind](source)
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, GrammarError) else GrammarError(kind, str(error)) from error


def _json_grammar(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)  # type: ignore[arg-type]  # its type is not exported


_READERS: dict[str, Callable[[str], str]] = {
    "json": _json_grammar,
    "json_object": lambda _: _json_grammar('{"type": "object"}'),
    "regex": LLMatcher.grammar_from_regex,
    "choice": lambda choices: grammar_from("choice", choices),
    "grammar": lambda text: grammar_from("grammar", text),
}
