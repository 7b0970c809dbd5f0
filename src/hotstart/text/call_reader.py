"""CallReader: one tool call between its marks, read while it grows; its arguments become JSON piece by piece.

A call counts once its name, and where its arguments begin, have been read; what comes after is taken as it is.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["CallReader", "Piece"]

HEAD_CHARACTERS = 1024  # in which a call must show its name, or it is read as a whole when it ends
_TAG_HEAD = re.compile(r"\s*<function=([^>\n]+)>")
_JSON_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NEXT = re.compile(r"<parameter=([^<>\n]+)>|</function>")
_VALUE_END = re.compile(r"\n?</parameter>|\n(?=<parameter=)|\n(?=</function>)")
_VALUE_ENDS = ("\n</parameter>", "</parameter>", "\n<parameter=", "\n</function>")


class Piece(NamedTuple):
    name: str | None  # with the first piece of a call, and only with that
    arguments: str


class CallReader:
    """`schemas`: the parameters' JSON schema of each tool, by its name."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.text = ""  # all of it
        self._schemas = schemas
        self._rest = ""  # what is not read yet
        self._read = self._read_head
        self._properties: Mapping[str, Any] = {}
        self._num_parameters = 0
        self._key = ""
        self._depth = 0
        self._in_string = self._is_escaped = False
        self._begins = False  # a value, of which nothing was read yet
        self._pieces: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        self.text += text
        self._rest += text
        while self._read():
            pass
        return self._take()

    def finish(self) -> list[Piece] | None:
        """At its end mark, or at the end of the answer.  None if it is no call."""
        if self._read == self._read_head:
            return self._whole()
        if self._read == self._read_text:
            text = self._rest.removeprefix("\n") if self._begins else self._rest
            self._add(_escaped(text.removesuffix("\n")) + '"')
            self._read = self._read_parameters
        elif self._read == self._read_value:
            self._add(self._value(self._rest))
            self._read = self._read_parameters
        if self._read == self._read_parameters:
            self._close()
        return self._take()

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _add(self, arguments: str) -> None:
        if arguments:
            self._pieces.append(Piece(None, arguments))

    # Each of these reads a part of the rest, and says whether to go on.

    def _read_head(self) -> bool:
        match = _TAG_HEAD.match(self._rest, 0, HEAD_CHARACTERS)
        if match:
            name = match[1].strip()
            found = self._schemas.get(name, {}).get("properties")
            self._properties = found if isinstance(found, dict) else {}
            self._read = self._read_parameters
        else:
            match = _JSON_HEAD.match(self._rest, 0, HEAD_CHARACTERS)
            if not match or (name := _json_text(match[1])) is None:
                return False
            self._read = self._read_object
        self._pieces.append(Piece(name, ""))
        self._rest = self._rest[match.end() :]
        return True

    def _read_object(self) -> bool:
        end = len(self._rest)
        for at, char in enumerate(self._rest):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped, self._in_string = char == "\\", char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    end, self._read = at + 1, self._read_nothing
                    break
        self._add(self._rest[:end])
        self._rest = self._rest[end:]
        return False

    def _read_nothing(self) -> bool:
        self._rest = ""
        return False

    def _read_parameters(self) -> bool:
        match = _NEXT.search(self._rest)
        if not match:
            last = self._rest.rfind("<")
            self._rest = self._rest[last:] if last >= 0 else ""
            return False
        self._rest = self._rest[match.end() :]
        if match[1] is None:
            self._close()
            self._read = self._read_nothing
            return False
        self._key, self._begins = match[1].strip(), True
        self._add(("{" if not self._num_parameters else ", ") + json.dumps(self._key, ensure_ascii=False) + ": ")
        self._num_parameters += 1
        schema = self._properties.get(self._key)
        is_text = isinstance(schema, dict) and schema.get("type") == "string"
        self._read = self._read_text if is_text else self._read_value
        if is_text:
            self._add('"')
        return True

    def _read_text(self) -> bool:
        """A text is passed on as it comes, but for what may become its end."""
        if self._begins:
            match = _VALUE_END.match(self._rest)
            if not match and any(end.startswith(self._rest) for end in _VALUE_ENDS):
                return False
            # One newline on each side is the form's, others are the value's.
            self._rest, self._begins = self._rest if match else self._rest.removeprefix("\n"), False
        match = _VALUE_END.search(self._rest)
        end = match.start() if match else len(self._rest) - _held(self._rest)
        self._add(_escaped(self._rest[:end]))
        if not match:
            self._rest = self._rest[end:]
            return False
        self._add('"')
        self._rest = self._rest[match.end() :]
        self._read = self._read_parameters
        return True

    def _read_value(self) -> bool:
        match = _VALUE_END.search(self._rest)
        if not match:
            return False
        self._add(self._value(self._rest[: match.start()]))
        self._rest = self._rest[match.end() :]
        self._read = self._read_parameters
        return True

    def _value(self, text: str) -> str:
        """JSON, if it reads as that; else text."""
        text = text.removeprefix("\n").removesuffix("\n")
        try:
            return json.dumps(json.loads(text), ensure_ascii=False)
        except (json.JSONDecodeError, RecursionError):
            return json.dumps(text, ensure_ascii=False)

    def _close(self) -> None:
        self._add("}" if self._num_parameters else "{}")

    def _whole(self) -> list[Piece] | None:
        """JSON in an order of its own."""
        try:
            found = json.loads(self.text)
        except (json.JSONDecodeError, RecursionError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            return None
        arguments = found.get("arguments", found.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return [Piece(found["name"], ""), Piece(None, text)]


def _held(text: str) -> int:
    """How many characters at the end of a text may become the end of a value."""
    longest = min(len(text), max(map(len, _VALUE_ENDS)) - 1)
    ends = (text[-count:] for count in range(longest, 0, -1))
    return next((len(tail) for tail in ends if any(end.startswith(tail) for end in _VALUE_ENDS)), 0)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _json_text(text: str) -> str | None:
    try:
        found: str = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found
