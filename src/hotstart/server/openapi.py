"""/openapi.json, made from the types that requests are checked against and answers are written from."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hotstart import __version__
from hotstart.server.errors import ErrorBody
from hotstart.server.exchange import Exchange

__all__ = ["Answerer", "Endpoint", "document"]

Answerer = Callable[[Exchange], Awaitable[None]]
REFERENCE = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is at a path.  `gives` is a type for JSON, or a media type; an error is always an ErrorBody."""

    method: str
    summary: str
    answer: Answerer
    gives: Any
    takes: Any = None
    streams: Any = None  # the type of one event, where a stream may be asked for
    gives_with_503: Any = ErrorBody
    errors: tuple[int, ...] = ()
    is_public: bool = False  # without a key


def document(endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    """Paths may hold one {parameter}, their last part."""
    types = [ErrorBody]
    for endpoint in endpoints.values():
        found = (endpoint.takes, endpoint.gives, endpoint.streams, endpoint.gives_with_503)
        types += [kind for kind in found if kind is not None and not isinstance(kind, str) and kind not in types]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    schema_of = dict(zip(types, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "hotstart", "version": __version__},
        "paths": {path: {e.method.lower(): _operation(path, e, schema_of)} for path, e in endpoints.items()},
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(path: str, endpoint: Endpoint, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    if isinstance(endpoint.gives, str):
        content = {endpoint.gives: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": schema_of[endpoint.gives]}}
    if endpoint.streams is not None:
        content["text/event-stream"] = {"schema": _event(schema_of[endpoint.streams], schema_of[ErrorBody])}
    responses = {"200": {"description": "done", "content": content}}
    codes = {*endpoint.errors, *(() if endpoint.is_public else (401,))}
    if endpoint.takes is not None:
        codes |= {400, 404, 408, 413, 500, 503}
    for code in sorted(codes):
        kind = endpoint.gives_with_503 if code == 503 else ErrorBody
        shown = {"application/json": {"schema": schema_of[kind]}}
        responses[str(code)] = {"description": _REASONS[code], "content": shown}
    operation: dict[str, Any] = {"summary": endpoint.summary, "responses": responses}
    if endpoint.takes is not None:
        body = {"application/json": {"schema": schema_of[endpoint.takes]}}
        operation["requestBody"] = {"required": True, "content": body}
    if "{" in path:
        name = path[path.index("{") + 1 : path.index("}")]
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if endpoint.is_public:
        operation["security"] = []
    return operation


def _event(*schemas: Any) -> dict[str, Any]:
    """One event of a stream.  The last one is [DONE], or an ErrorBody where it went wrong."""
    done = {"type": "string", "const": "[DONE]"}
    piece = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": list(schemas)}}
    return {"type": "object", "properties": {"data": {"anyOf": [done, piece]}}, "required": ["data"]}


_REASONS = {
    400: "a field is wrong; the error names it",
    401: "the API key is missing or wrong",
    404: "there is no such model",
    408: "the body did not arrive in time",
    413: "the body is too large",
    500: "the server failed at this request",
    503: "not now: loading, full or shutting down",
}
