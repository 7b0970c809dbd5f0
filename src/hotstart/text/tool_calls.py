"""Tool calls in an answer's text, found while it grows.  Both of Qwen's forms, each between <tool_call> marks:

    {"name": "f", "arguments": {"x": 1}}                                        Qwen3-Next
    <function=f> <parameter=x> 1 </parameter> </function>                       Qwen3.5

A parameter is JSON if the tool's schema does not call it a string and it reads as JSON; nothing is ever evaluated.
What does not read as a call stays text.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hotstart.text.call_reader import CallReader, Piece
from hotstart.text.stop import StopStrings

__all__ = ["Call", "CallPiece", "ToolCalls", "joined"]

BEGIN, END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str  # a JSON object, unless the answer was cut off in it


class CallPiece(NamedTuple):
    """A part of one of the answer's calls."""

    number: int  # of the call, from 0
    name: str | None  # with the first piece of a call, and only with that
    arguments: str  # what is new of them


class ToolCalls:
    """`schemas`: the parameters' JSON schema of each tool, by its name."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._schemas = schemas
        self._mark = StopStrings([BEGIN])
        self._reader: CallReader | None = None  # of the call that is being read
        self._blanks = ""  # behind what was shown: before a call they belong to nobody
        self._num_calls = 0

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """(content, pieces of calls) that are certain now."""
        content: list[str] = []
        pieces: list[CallPiece] = []
        while True:
            shown = self._mark.push(text)
            if self._reader is None:
                content.append(self._shown(shown))
            else:
                self._number(self._reader.push(shown), pieces)
            if self._mark.matched is None:
                return "".join(content), pieces
            text = self._mark.rest
            if self._reader is None:
                self._reader, self._mark = CallReader(self._schemas), StopStrings([END])
            else:
                self._close(self._reader, pieces, content, END)

    def finish(self) -> tuple[str, list[CallPiece]]:
        """At the end of the answer: a call that was not closed counts if it reads as one."""
        content: list[str] = []
        pieces: list[CallPiece] = []
        if self._reader is None:
            content.append(self._shown(self._mark.finish()))
        else:
            self._number(self._reader.push(self._mark.finish()), pieces)
            self._close(self._reader, pieces, content, "")
        if not self._num_calls:
            content.append(self._blanks)
        self._blanks = ""
        return "".join(content), pieces

    def _close(self, reader: CallReader, pieces: list[CallPiece], content: list[str], end: str) -> None:
        last = reader.finish()
        if last is None:
            content.append(self._shown(BEGIN + reader.text + end))
        else:
            self._number(last, pieces)
        self._reader, self._mark = None, StopStrings([BEGIN])

    def _number(self, found: Iterable[Piece], pieces: list[CallPiece]) -> None:
        for piece in found:
            if piece.name is not None:
                self._num_calls += 1
                self._blanks = ""
            pieces.append(CallPiece(self._num_calls - 1, *piece))

    def _shown(self, text: str) -> str:
        text = self._blanks + text
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        return shown


def joined(pieces: Iterable[CallPiece]) -> list[Call]:
    """The calls that all pieces of an answer make."""
    calls: list[Call] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append(Call(piece.name, ""))
        calls[-1] = Call(calls[-1].name, calls[-1].arguments + piece.arguments)
    return calls
