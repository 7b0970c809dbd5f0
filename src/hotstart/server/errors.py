"""What a client reads when something went wrong: OpenAI's envelope, a stable code, and no word of its own input."""

import re

import msgspec

from hotstart.errors import (
    EngineDead,
    HotstartError,
    InvalidSamplingParams,
    PromptTooLong,
    QueueFull,
    RequestError,
    StepError,
)

__all__ = ["ApiError", "ErrorBody", "ErrorDetail", "api_error_of", "bad_request"]

RETRY_AFTER_S = 1


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class ApiError(Exception):
    """`retry_after_s` is for what may go well later; without it clients are told that the same request fails again."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self._headers = headers

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(
            ErrorDetail(self.message, _TYPES.get(self.status, "invalid_request_error"), self.param, self.code)
        )

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        if self.retry_after_s is not None:
            return (*self._headers, (b"retry-after", str(self.retry_after_s).encode()))
        return (*self._headers, (b"x-should-retry", b"false"))


_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    500: "server_error",
    503: "service_unavailable_error",
}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, code, message, param=param)


def api_error_of(error: HotstartError) -> ApiError:
    """What the engine refused or failed at, as a client is told it."""
    if isinstance(error, QueueFull):
        return ApiError(503, "queue_full", str(error), retry_after_s=RETRY_AFTER_S)
    if isinstance(error, PromptTooLong):
        return bad_request(str(error), "prompt", "context_length_exceeded")
    if isinstance(error, InvalidSamplingParams):
        return bad_request(str(error), _first_word(str(error)))
    if isinstance(error, RequestError):
        return bad_request(str(error), "prompt")
    if isinstance(error, EngineDead):
        return ApiError(503, "engine_dead", "the engine has stopped; the server is going down", retry_after_s=5)
    if isinstance(error, StepError):
        return ApiError(
            500, "step_failed", "the step that computed this request failed; send it again", retry_after_s=1
        )
    return ApiError(500, "internal_error", "the server failed at this request")


def _first_word(message: str) -> str | None:
    """The field that a message of SamplingParams begins with."""
    match = re.match(r"[a-z_]+", message)
    return match[0] if match else None
