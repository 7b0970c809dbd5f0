"""The grammar of tool calls in the form that the model's template writes (tool_calls.py reads both back).

    <tool_call> {"name": "f", "arguments": {"x": 1}} </tool_call>                                  as JSON
    <tool_call> <function=f> <parameter=x> 1 </parameter> </function> </tool_call>                 as tags

Arguments are what the tool's schema describes; among tags they come in the schema's order.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hotstart.errors import RequestError
from hotstart.text.grammar import JSON_OPTIONS

__all__ = ["tool_grammar"]

_NAME = re.compile(r'[^\s<>"\\]+')
_ON_ONE_LINE = {"x-guidance": {"whitespace_pattern": " ?"}}
_DEFINITIONS = ("$defs", "definitions")
_HEAD = "%llguidance {}\n"
_TEXT = 'text[suffix="\\n</parameter>"]: /(.|\\n)*/\n'
_ANY_PARAMETERS = '("<parameter=" /[A-Za-z0-9_.-]+/ ">\\n" text "\\n")*'


def tool_grammar(
    schemas: Mapping[str, Mapping[str, Any] | None],
    *,
    as_tags: bool,
    forced: bool,
    several: bool = True,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """In Lark's notation.  `schemas`: of each tool's arguments, by its name; None: any arguments.

    Forced, the answer is one call, or several, or JSON of `answer` where that is a schema; else it is free but for what
    stands in its calls.  Raises RequestError for a name that no call could hold.
    """
    rules, names = [], []
    for number, (name, schema) in enumerate(schemas.items()):
        if not _NAME.fullmatch(name):
            raise RequestError("a tool that is called by a grammar has a name without blanks, quotes and brackets")
        names.append(f"tool_{number}")
        body = _tags(name, schema) if as_tags else _object(name, schema)
        rules.append(f"{names[-1]}: {body}\n")
    rules.append(f'inner: "\\n" ({" | ".join(names)}) "\\n</tool_call>"\n')
    if forced:
        more = ' ("\\n" call)*' if several else ""
        other = "" if answer is None else f" | %json {json.dumps({**answer, 'x-guidance': JSON_OPTIONS})}"
        rules.append(f'call: "<tool_call>" inner\nstart: ("\\n" ("\\n")?)? call{more}{other}\n')
    else:
        rules.append('begin[lazy]: ANY "<tool_call>"\nANY: /(.|\\n)*/\nrest: ANY\nstart: (begin inner)* rest\n')
    return _HEAD + "".join(rules) + (_TEXT if as_tags else "")


def _object(name: str, schema: Mapping[str, Any] | None) -> str:
    head = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ', ensure_ascii=False)
    return f'{head} %json {json.dumps(_closed(schema))} "}}"'


def _closed(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Arguments are an object, whatever the schema leaves open."""
    return {"type": "object", **(schema or {}), **_ON_ONE_LINE}


def _tags(name: str, schema: Mapping[str, Any] | None) -> str:
    head = json.dumps(f"<function={name}>\n", ensure_ascii=False)
    properties = (schema or {}).get("properties")
    if schema is None or not isinstance(properties, dict):
        return f'{head} {_ANY_PARAMETERS} "</function>"'
    return " ".join([head, *_parameters(schema, properties), '"</function>"'])


def _parameters(schema: Mapping[str, Any], properties: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    shared = {key: schema[key] for key in _DEFINITIONS if key in schema}
    for key, value in properties.items():
        if not _NAME.fullmatch(key):
            raise RequestError("a parameter that is written by a grammar has a name without blanks and brackets")
        head = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
        parameter = f'{head} {_value(value, shared)} "\\n"'
        yield parameter if key in required else f"({parameter})?"


def _value(schema: Any, shared: Mapping[str, Any]) -> str:
    """With the end of its parameter.  Text stands there as it is, everything else as JSON."""
    if not isinstance(schema, dict) or not schema.keys() & {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}:
        return "text"
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        return "(" + " | ".join(json.dumps(f"{c}\n</parameter>", ensure_ascii=False) for c in choices) + ")"
    if schema.get("type") == "string":
        return "text"
    return f'%json {json.dumps({**shared, **schema, **_ON_ONE_LINE})} "\\n</parameter>"'
