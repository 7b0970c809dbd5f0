"""Guides: the grammars of requests while they run.

A grammar is compiled beside the steps, and its request joins the queue when that is done.  From then on a guide follows
the tokens of its request, and says before each step which may come next: that is computed while the step's forward pass
runs, into a buffer that was there before.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Self

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from hotstart.errors import InvalidSamplingParams
from hotstart.request import Request, StructuredOutputsParams, TokenEvent
from hotstart.text.grammar import GrammarError, Grammars

__all__ = ["Guide", "Guides"]

MAX_THREADS = 8


class Guide:
    """One answer's grammar.  Before it has said `after` it is free; between that and the grammar may be line ends."""

    def __init__(self, matcher: LLMatcher, after: str | None) -> None:
        self.matcher = matcher
        self.is_free = after is not None
        self.may_break = False  # the next token may be line ends, which the grammar does not see
        self._after = (after or "").encode()
        self._said = b""  # of an answer that is still free, as much as could become `after`

    @classmethod
    def of(cls, grammars: Grammars, wish: StructuredOutputsParams) -> Self:
        return cls(grammars.matcher(wish), wish.after)

    def take(self, token_id: int, grammars: Grammars) -> None:
        if self.is_free:
            token = grammars.tokenizer.decode_bytes([token_id])
            self._said = (self._said + token)[-len(self._after) - len(token) :]
            self.is_free = self._after not in self._said
            self.may_break = not self.is_free
        elif not self.may_break or token_id not in grammars.line_ends:
            self.matcher.consume_token(token_id)
            self.may_break = False
        else:
            self.may_break = False


class Guides:
    """`grammars` is None where there is no tokenizer, and then no request can have one."""

    def __init__(self, grammars: Grammars | None) -> None:
        self._grammars = grammars
        self._compiling: dict[str, tuple[Request, Future[Guide]]] = {}
        self._by_request: dict[str, tuple[int, Guide]] = {}
        self._by_sequence: dict[int, Guide] = {}
        self._compiler = ThreadPoolExecutor(1, "compile grammars")
        self._filler = ThreadPoolExecutor(1, "fill masks")
        self._masks = LLExecutor(max(1, min((os.cpu_count() or 1) // 2, MAX_THREADS)))

    @property
    def can_guide(self) -> bool:
        return self._grammars is not None

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Those whose grammar is being compiled."""
        return tuple(self._compiling)

    def check(self, wish: StructuredOutputsParams) -> None:
        """Raises InvalidSamplingParams for what cannot be followed."""
        try:
            self._known().matcher(wish)
        except GrammarError as error:
            raise InvalidSamplingParams(str(error)) from error

    def prepare(self, request: Request, wish: StructuredOutputsParams) -> None:
        """Raises InvalidSamplingParams where no request can have a grammar."""
        self._compiling[request.id] = request, self._compiler.submit(Guide.of, self._known(), wish)

    def _known(self) -> Grammars:
        if self._grammars is None:
            raise InvalidSamplingParams("structured_outputs need the model's tokenizer.json, which is not there")
        return self._grammars

    def ready(self, timeout_s: float) -> Iterator[tuple[Request, Guide | InvalidSamplingParams]]:
        """Requests whose grammar is compiled, or cannot be; waits for the first of them if none is."""
        if timeout_s:
            wait([made for _, made in self._compiling.values()], timeout_s, FIRST_COMPLETED)
        for request, made in tuple(self._compiling.values()):
            if made.done():
                del self._compiling[request.id]
                error = made.exception()
                if error is None:
                    yield request, made.result()
                else:
                    yield request, InvalidSamplingParams(f"{error or type(error).__name__}")

    def bind(self, request_id: str, sequence_id: int, guide: Guide) -> None:
        self._by_request[request_id] = sequence_id, guide
        self._by_sequence[sequence_id] = guide

    def drop(self, request_id: str) -> bool:
        """Whether its grammar was still being compiled, and nobody else knew of it."""
        sequence_id, _ = self._by_request.pop(request_id, (None, None))
        if sequence_id is not None:
            del self._by_sequence[sequence_id]
        return self._compiling.pop(request_id, None) is not None

    def follow(self, events: Sequence[TokenEvent]) -> dict[str, InvalidSamplingParams]:
        """Take the tokens of a step.  The answer: requests whose grammar could not go on."""
        broken = {}
        for event in events:
            if event.request_id not in self._by_request:
                continue
            _, guide = self._by_request[event.request_id]
            assert self._grammars is not None, "a guide without grammars"
            for token_id in event.token_ids:
                guide.take(token_id, self._grammars)
            if event.finish_reason is not None:
                self.drop(event.request_id)
            elif guide.matcher.is_error():
                broken[event.request_id] = InvalidSamplingParams(
                    f"structured_outputs became too complex to follow ({guide.matcher.stop_reason()}); simplify them"
                )
        return broken

    def fill(self, rows: list[tuple[int, int]], masks: NDArray[np.int32]) -> "Future[None]":
        """Write the masks of (sequence, row): see masks.FillMasks.  One that has ended meanwhile may say anything."""
        guides = [(self._by_sequence.get(sequence_id), row) for sequence_id, row in rows]
        return self._filler.submit(self._fill, guides, masks)

    def _fill(self, guides: list[tuple[Guide | None, int]], masks: NDArray[np.int32]) -> None:
        count, width = masks.shape
        assert self._grammars is not None, "a guide without grammars"
        bound = [(guide.matcher, row) for guide, row in guides if guide is not None and not guide.is_free]
        if bound:
            self._masks.unsafe_compute_mask_ptr(bound, masks.ctypes.data, 4 * width, count)
        for guide, row in guides:
            bits = masks[row].view(np.uint8)
            if guide is None:
                bits[:] = 0xFF
            elif guide.is_free:
                bits[:] = 0xFF
                for token_id in self._grammars.end_ids:
                    bits[token_id // 8] &= 0xFF ^ 1 << token_id % 8
            elif guide.may_break:
                for token_id in self._grammars.line_ends:
                    bits[token_id // 8] |= 1 << token_id % 8

    def close(self) -> None:
        self._compiler.shutdown(wait=False, cancel_futures=True)
        self._filler.shutdown(wait=False, cancel_futures=True)
