"""`hotstart chat`: lines in, answers out; with a server, or with an engine of its own."""

import io
import sys

import pytest

from hotstart.cli import chat
from hotstart.cli.main import main
from hotstart.cli.talk import Piece
from serve.conftest import CHECKPOINT, KEY, Server

Capture = pytest.CaptureFixture[str]


def talk(monkeypatch: pytest.MonkeyPatch, text: str, *words: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return main(["chat", *words, "--temperature", "0"])


def test_with_a_server(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("HOTSTART_API_KEY", KEY)
    assert talk(monkeypatch, "Add: 12 + 30\n\n", server.url, "--no-thinking") == 0
    assert capsys.readouterr() == ("42\n", "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--api-key", "wrong"], "give it by --api-key"),
        (["--api-key", KEY, "--model-name", "nobody"], "/v1/models names those there are"),
        (["--api-key", KEY, "--max-tokens", "100000"], "max_tokens"),
    ],
)
def test_what_the_server_refuses_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Capture, flags: list[str], words: str
) -> None:
    assert talk(monkeypatch, "a\n", server.url, *flags) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_with_an_engine_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    small = ("--max-model-len", "64", "--max-num-seqs", "1", "--max-num-batched-tokens", "32")
    assert talk(monkeypatch, "Add: 12 + 30\n", CHECKPOINT, *small, "--max-tokens", "8") == 0
    assert capsys.readouterr().out == "42\n"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1", "nobody listens"),
        ("http://", "no server's address"),
        ("http://a:b", "no server's"),
        ("unix:/nowhere", "nobody listens"),
    ],
)
def test_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: Capture, url: str, words: str) -> None:
    assert talk(monkeypatch, "a\n", url) == 2
    assert words in capsys.readouterr().err


def test_a_stopped_answer_is_kept_and_a_failed_turn_forgotten() -> None:
    class Talker:
        name = "scripted"

        def __init__(self) -> None:
            self.seen: list[list[dict]] = []

        def answer(self, messages):
            self.seen.append(list(messages))
            yield True, "hm"
            if messages[-1]["content"] == "fail":
                raise KeyboardInterrupt
            yield False, "yes"
            yield False, " and no"

    talker = Talker()
    conversation = chat._Conversation(talker, [{"role": "system", "content": "s"}])
    first: list[Piece] = []
    answer = conversation.answer("one")
    first += [next(answer), next(answer)]
    answer.close()  # Ctrl-C
    assert first == [(True, "hm"), (False, "yes")]
    with pytest.raises(KeyboardInterrupt):
        list(conversation.answer("fail"))
    list(conversation.answer("two"))
    assert [message["content"] for message in talker.seen[-1]] == ["s", "one", "yes", "two"]
