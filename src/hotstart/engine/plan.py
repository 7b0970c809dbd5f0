"""What one step does, as plain integers (no torch here): logged, replayed and compared as they are.

The scheduler writes a `StepPlan`; `inputs` turns it into tensors; the runner answers with a `StepResult`.
What exists once for each sequence and step is a named tuple: it is made in a third of a frozen dataclass's time.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from hotstart.request import PositionLogprobs

__all__ = ["IN_FLIGHT", "NO_SLOT", "Penalties", "Sampling", "Span", "SpanResult", "StepKind", "StepPlan", "StepResult"]

StepKind = Literal["prompt", "answer", "mixed"]

# A token id: what the previous span of the sequence samples.  It is read on the device, by the span's read slot.
IN_FLIGHT = -1
NO_SLOT = -1  # as read slot: start from the zero state


class Sampling(NamedTuple):
    """How a span's last position becomes a token.  `seed` and `position` alone decide the draw, no neighbour can."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    position: int  # number of tokens before the one sampled
    banned_ids: tuple[int, ...] = ()  # end and stop tokens while min_tokens is not reached, ends of bad words
    logprobs: int | None = None
    min_p: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()  # token id, what is added
    allowed: bytes | None = None  # bits of the only tokens that may come, as far as the last of them
    is_guided: bool = False  # by the grammar of its sequence

    @property
    def edits_logits(self) -> bool:
        """Before the draw.  What a sequence's tokens cost stands in its span."""
        return bool(self.banned_ids or self.bias or self.is_guided or self.allowed)


class Penalties(NamedTuple):
    """What a sequence's tokens cost when they come again.  They are counted on the device, by the sequence's slot."""

    slot: int  # its own, whatever its spans read and write
    num_prompt: int  # tokens before these are the prompt's
    repetition: float
    presence: float
    frequency: float


class Span(NamedTuple):
    """A sequence's part of a step: positions [start, start + length)."""

    sequence_id: int
    start: int
    length: int
    token_ids: tuple[int, ...]  # length of them; IN_FLIGHT only as the single token of a decode span
    pages: tuple[int, ...]  # all pages of positions [0, start + length), in order
    read_slot: int  # NO_SLOT iff start == 0; other than write_slot where the state is a snapshot, becomes one, or moves
    write_slot: int
    sampling: Sampling | None = None  # None: the prompt goes on in a later step
    prompt_logprobs: int | None = None  # alternatives wanted at each position of this span
    next_prompt_id: int | None = None  # the token after the span, where prompt_logprobs needs it
    penalties: Penalties | None = None  # in every span of a sequence that has any


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Spans of length 1 come first, so that every op splits its tokens at one index."""

    step_id: int
    spans: tuple[Span, ...]

    @property
    def num_tokens(self) -> int:
        return sum(span.length for span in self.spans)

    @property
    def num_decodes(self) -> int:
        return sum(span.length == 1 for span in self.spans)

    @property
    def kind(self) -> StepKind:
        """A prompt of one token counts as an answer: to the model it is the same."""
        if self.spans[-1].length == 1:
            return "answer"
        return "mixed" if self.spans[0].length == 1 else "prompt"


class SpanResult(NamedTuple):
    token_id: int | None  # None iff the span does not sample
    logprobs: PositionLogprobs | None = None
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()  # of positions start + 1 ... start + length, within the prompt


@dataclass(frozen=True, slots=True)
class StepResult:
    """One entry for each span of the plan, in its order."""

    step_id: int
    spans: tuple[SpanResult, ...]
