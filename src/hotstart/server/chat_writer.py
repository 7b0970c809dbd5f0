"""How the answers to a conversation are written: reasoning, content and tool calls, whole or piece by piece."""

import secrets
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, UnsetType

from hotstart.request import PositionLogprobs
from hotstart.server.answers import (
    Answer,
    AnsweredCall,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    FunctionDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from hotstart.server.exchange import Exchange
from hotstart.server.generation import Choice, Generation
from hotstart.server.schemas import ChatRequest, FunctionCall
from hotstart.server.service import Service
from hotstart.server.stream import stream
from hotstart.text.thinking import Thinking
from hotstart.text.tool_calls import CallPiece, ToolCalls, joined

__all__ = ["ChatWriter"]


class _Voice:
    """One choice's text, told apart.  What `take` gives, it gives once."""

    def __init__(self, choice: Choice, prompt: str, tools: Mapping[str, Mapping[str, Any]] | None) -> None:
        self.choice = choice
        self.num_calls = 0
        self.num_reasoning_tokens = 0
        self._thinking = Thinking.after(prompt)
        self._tools = None if tools is None else ToolCalls(tools)
        self._num_tokens_seen = 0
        self._is_finished = False

    @property
    def finish_reason(self) -> str | None:
        reason = self.choice.finish_reason
        return "tool_calls" if reason == "stop" and self.num_calls else reason

    def take(self) -> tuple[str, str, list[CallPiece]]:
        """(reasoning, content, pieces of tool calls) that are new."""
        builder = self.choice.builder
        if self._thinking.is_inside:
            self.num_reasoning_tokens += builder.num_tokens - self._num_tokens_seen
        self._num_tokens_seen = builder.num_tokens
        reasoning, content = self._thinking.push(self.choice.take_text())
        if not builder.finished or self._is_finished:
            content, calls = self._without_calls(content)
        else:
            self._is_finished = True
            last_reasoning, last_content = self._thinking.finish()
            reasoning += last_reasoning
            content, calls = self._without_calls(content + last_content)
            if self._tools is not None:
                last_content, last_calls = self._tools.finish()
                content, calls = content + last_content, calls + last_calls
        self.num_calls += sum(piece.name is not None for piece in calls)
        return reasoning, content, calls

    def _without_calls(self, content: str) -> tuple[str, list[CallPiece]]:
        return (content, []) if self._tools is None else self._tools.push(content)


class ChatWriter:
    def __init__(
        self,
        service: Service,
        request: ChatRequest,
        model: str,
        completion_id: str,
        generation: Generation,
        prompt: str,
    ) -> None:
        self._service = service
        self._request = request
        self._model = model
        self._id = completion_id
        self._generation = generation
        self._created = service.now()
        wants_tools = request.tools and request.tool_choice != "none"
        tools = {t.function.name: t.function.parameters or {} for t in request.tools or ()} if wants_tools else None
        self._voices = [_Voice(choice, prompt, tools) for choice in generation.choices]

    def whole(self) -> ChatCompletion:
        choices = [self._choice(voice) for voice in self._voices]
        return ChatCompletion(self._id, self._created, self._model, choices, self._usage())

    async def stream(self, exchange: Exchange) -> None:
        await stream(
            exchange,
            self._generation,
            self._request.stream_options,
            keep_alive_s=float(self._service.server.sse_keep_alive_interval),
            pieces_of=lambda grown: [piece for c in grown for piece in self._pieces(self._voices[c.number])],
            chunk=self._chunk,
            usage=self._usage,
        )

    def _usage(self) -> Usage:
        return self._generation.usage(sum(voice.num_reasoning_tokens for voice in self._voices))

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(self._id, self._created, self._model, choices, usage=usage)

    def _pieces(self, voice: _Voice) -> list[ChunkChoice]:
        """The role at first, then what is new, then why it ended."""
        choice = voice.choice
        deltas = [] if choice.num_pieces else [Delta(role="assistant", content="")]
        choice.num_pieces += 1
        reasoning, content, calls = voice.take()
        if reasoning and self._request.include_reasoning is not False:
            deltas.append(Delta(reasoning=reasoning, reasoning_content=reasoning))
        if content:
            deltas.append(Delta(content=content))
        for number, name, arguments in calls:
            # Names come once and first, arguments after them, as clients put them together.
            if name is not None:
                head = ToolCallDelta(number, _call_id(), "function", FunctionDelta(name, ""))
                deltas.append(Delta(tool_calls=[head]))
            if arguments:
                deltas.append(Delta(tool_calls=[ToolCallDelta(number, function=FunctionDelta(arguments=arguments))]))
        logprobs, ids = self._logprobs(choice), self._ids(choice)
        if (logprobs or ids) and (not deltas or deltas[-1].role is not UNSET):
            deltas.append(Delta(content=""))
        pieces = [ChunkChoice(choice.number, delta) for delta in deltas]
        if pieces:
            pieces[-1].logprobs, pieces[-1].token_ids = logprobs, ids
        if voice.finish_reason is not None:
            pieces.append(
                ChunkChoice(choice.number, Delta(), finish_reason=voice.finish_reason, stop_reason=choice.stop_reason)
            )
        return pieces

    def _choice(self, voice: _Voice) -> ChatChoice:
        choice = voice.choice
        reasoning, content, calls = voice.take()
        shown = reasoning if reasoning and self._request.include_reasoning is not False else None
        made = [AnsweredCall(_call_id(), FunctionCall(call.name, call.arguments)) for call in joined(calls)]
        answer = Answer(None if calls and not content else content, reasoning=shown, reasoning_content=shown)
        if made:
            answer.tool_calls = made
        reason = voice.finish_reason
        assert reason is not None, "an unfinished answer is not whole"
        logprobs = self._logprobs(choice)
        return ChatChoice(choice.number, answer, logprobs, reason, choice.stop_reason, self._ids(choice))

    def _ids(self, choice: Choice) -> list[int] | UnsetType:
        return choice.take_ids() if self._request.return_token_ids else UNSET

    def _logprobs(self, choice: Choice) -> ChatLogprobs | None:
        positions = choice.take_logprobs()
        return ChatLogprobs([self._token_logprob(p) for p in positions]) if positions else None

    def _token_logprob(self, position: PositionLogprobs) -> TokenLogprob:
        tokenizer = self._service.edge.tokenizer
        top = [
            TopLogprob(tokenizer.token_text(token_id), logprob, list(tokenizer.token_bytes(token_id)))
            for token_id, logprob in zip(position.top_ids, position.top_logprobs, strict=True)
        ]
        token_id = position.token_id
        text, data = tokenizer.token_text(token_id), list(tokenizer.token_bytes(token_id))
        return TokenLogprob(text, position.logprob, data, top)


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
