"""What clients read, as types: answers are written from them, and /openapi.json is made from them.

Names are OpenAI's, and vLLM's where OpenAI has none.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from hotstart.server.schemas import FunctionCall

__all__ = [
    "Answer",
    "AnsweredCall",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatLogprobs",
    "ChunkChoice",
    "Completion",
    "CompletionDetails",
    "Delta",
    "DetokenizedText",
    "FunctionDelta",
    "Health",
    "ModelCard",
    "ModelList",
    "PhaseReport",
    "PromptDetails",
    "Readiness",
    "TextChoice",
    "TextLogprobs",
    "TokenLogprob",
    "Tokens",
    "ToolCallDelta",
    "TopLogprob",
    "Usage",
    "Version",
]


class PromptDetails(Struct):
    cached_tokens: int = 0


class CompletionDetails(Struct):
    reasoning_tokens: int = 0


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]


class FunctionDelta(Struct, omit_defaults=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, omit_defaults=True):
    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET


class AnsweredCall(Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Answer(Struct):
    content: str | None
    role: Literal["assistant"] = "assistant"
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[AnsweredCall] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class TextLogprobs(Struct):
    """Without a log-probability is only the first token of a prompt."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TextChoice(Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct):
    """Whole, or one piece of a stream."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct):
    id: str
    created: int
    root: str
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "hotstart"


class ModelList(Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Tokens(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizedText(Struct):
    prompt: str


class Health(Struct):
    status: str
    detail: str | None = None


class PhaseReport(Struct):
    name: str
    seconds: float
    num_bytes: int
    detail: str


class Readiness(Struct):
    """`status`: loading, ready, draining, dead."""

    status: str
    phase: str
    percent: float
    phases: list[PhaseReport]
    note: str = ""


class Version(Struct):
    version: str
