"""Tool calls in an answer's text, found while it grows.  Both of Qwen's forms, each between <tool_call> marks:

    {"name": "f", "arguments": {"x": 1}}                                        Qwen3-Next
    <function=f> <parameter=x> 1 </parameter> </function>                       Qwen3.5

A parameter is JSON if the tool's schema does not call it a string and it reads as JSON; nothing is ever evaluated.
What does not read as a call stays text.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hotstart.text.stop import StopStrings

__all__ = ["Call", "ToolCalls"]

BEGIN, END = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*\Z", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>")
_PARAMETER_END = "</parameter>"


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str  # a JSON object


class ToolCalls:
    """`schemas`: the parameters' JSON schema of each tool, by its name."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._schemas = schemas
        self._mark = StopStrings([BEGIN])
        self._body: list[str] | None = None  # of the call that is being read
        self._blanks = ""  # behind what was shown: before a call they belong to nobody
        self._num_calls = 0

    def push(self, text: str) -> tuple[str, list[Call]]:
        """(content, calls) that are complete now."""
        content: list[str] = []
        calls: list[Call] = []
        while True:
            shown = self._mark.push(text)
            if self._body is None:
                content.append(self._shown(shown))
            else:
                self._body.append(shown)
            if self._mark.matched is None:
                return "".join(content), calls
            text = self._mark.rest
            if self._body is None:
                self._body, self._mark = [], StopStrings([END])
            else:
                self._close(calls, content, END)

    def finish(self) -> tuple[str, list[Call]]:
        """At the end of the answer: a call that was not closed counts if it reads as one."""
        content: list[str] = []
        calls: list[Call] = []
        if self._body is None:
            content.append(self._shown(self._mark.finish()))
        else:
            self._body.append(self._mark.finish())
            self._close(calls, content, "")
        if not self._num_calls:
            content.append(self._blanks)
        self._blanks = ""
        return "".join(content), calls

    def _close(self, calls: list[Call], content: list[str], end: str) -> None:
        assert self._body is not None, "a call ends that has not begun"
        body = "".join(self._body)
        call = self._read(body)
        if call is None:
            content.append(self._shown(BEGIN + body + end))
        else:
            calls.append(call)
            self._num_calls += 1
            self._blanks = ""
        self._body, self._mark = None, StopStrings([BEGIN])

    def _shown(self, text: str) -> str:
        text = self._blanks + text
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        return shown

    def _read(self, body: str) -> Call | None:
        match = _FUNCTION.match(body)
        if match:
            return self._read_tags(match[1].strip(), match[2])
        try:
            found = json.loads(body)
        except (json.JSONDecodeError, RecursionError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            return None
        arguments = found.get("arguments", found.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return Call(found["name"], text)

    def _read_tags(self, name: str, text: str) -> Call:
        marks = list(_PARAMETER.finditer(text))
        ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
        arguments = {}
        for mark, end in zip(marks, ends, strict=True):
            value = text[mark.end() : end]
            close = value.rfind(_PARAMETER_END)
            value = value if close < 0 else value[:close]
            key = mark[1].strip()
            # One newline on each side is the form's, others are the value's.
            arguments[key] = self._value(name, key, value.removeprefix("\n").removesuffix("\n"))
        return Call(name, json.dumps(arguments, ensure_ascii=False))

    def _value(self, name: str, key: str, text: str) -> Any:
        properties = self._schemas.get(name, {}).get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        if isinstance(schema, dict) and schema.get("type") == "string":
            return text
        try:
            return json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            return text
