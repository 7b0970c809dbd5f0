"""Ids, text and increments agree with the tokenizers library; broken files are typed errors."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotstart.errors import CheckpointError, InvalidPrompt, UnsupportedModel
from hotstart.text.detokenizer import Detokenizer
from hotstart.text.tokenizer import Tokenizer

TEXTS = ["", "a", " two  spaces ", "größer 日本語", "🙂 family: 👨‍👩‍👧", "مرحبا\n\t\x00", "x<|im_end|>y<tool call>z"]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_then_decode_gives_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_the_end_token_is_named_by_the_config(tokenizer: Tokenizer) -> None:
    assert [tokenizer.eos_token_id] == tokenizer.encode("<|im_end|>")


def increments(tokenizer: Tokenizer, pieces: Sequence[Sequence[int]], skip: bool) -> str:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    return "".join(detokenizer.push(piece) for piece in pieces) + detokenizer.finish()


@given(st.data())
def test_increments_join_to_the_full_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Any ids in any cuts, broken UTF-8 and ids beyond the vocabulary included."""
    any_ids = st.lists(st.lists(st.integers(0, len(tokenizer) + 5), max_size=4), max_size=12)
    pieces = data.draw(any_ids | st.text().map(lambda text: [[i] for i in tokenizer.encode(text)]))
    skip = data.draw(st.booleans())
    whole = tokenizer.decode([i for piece in pieces for i in piece], skip_special_tokens=skip)
    assert increments(tokenizer, pieces, skip) == whole


def test_no_part_of_a_character_is_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é€𝄞")
    assert len(ids) > 3
    detokenizer = Detokenizer(tokenizer)
    shown = [detokenizer.push([i]) for i in ids]
    assert "�" not in "".join(shown) and "" in shown


def test_token_text_is_for_one_token(tokenizer: Tokenizer) -> None:
    first_byte = tokenizer.encode("𝄞")[0]
    assert [tokenizer.token_text(i) for i in [*tokenizer.encode("<|im_end|>"), first_byte]] == ["<|im_end|>", "�"]
    assert tokenizer.token_text(len(tokenizer) + 100) == ""


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidPrompt, match="surrogate at character 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("tokenizer.json", None, CheckpointError, "does not exist"),
        ("tokenizer.json", b"{", CheckpointError, "is no tokenizer"),
        ("tokenizer.json", b"\xff", CheckpointError, "not UTF-8"),
        ("tokenizer_config.json", b"[]", CheckpointError, "expected a JSON object"),
        ("tokenizer_config.json", b"{,}", CheckpointError, "is not valid JSON"),
    ],
)
def test_broken_files_are_named(
    tokenizer_folder: Path, tmp_path: Path, name: str, content: bytes | None, error: type[Exception], words: str
) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        Tokenizer(tmp_path)


def test_another_kind_of_tokenizer_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    raw = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"decoder": {"type": "Fuse"}}))
    with pytest.raises(UnsupportedModel, match="Fuse"):
        Tokenizer(tmp_path)
