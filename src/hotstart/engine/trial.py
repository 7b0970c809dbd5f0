"""Trial: one set of limits, while a set that fits is looked for; which of them gives way to which.

How many sequences may run, where nobody says it, is a question of what their states take from the pages.  With a share
s of the caches for states, at least min(s, 1 - s) as many run at once as in the division that is best for their length,
whatever that is.  So a default gives way until states take at most half; it goes down by a third or a quarter, and s is
at least 1/3 then.
"""

from dataclasses import replace
from typing import NamedTuple, Self

from hotstart.engine.memory import FEWEST_TOKENS, Measured, Wishes

__all__ = ["Trial", "fitting", "of_use", "step_sizes"]


def step_sizes(limit: int, explicit: bool) -> tuple[int, ...]:
    """Tokens of a step that the plan may choose, largest first: their peaks have to be known."""
    sizes = [limit]
    while not explicit and sizes[-1] > FEWEST_TOKENS:
        sizes.append(max(sizes[-1] // 2, FEWEST_TOKENS))
    return tuple(sizes)


class Trial(NamedTuple):
    """One set of limits, while a set that fits is looked for."""

    model_len: int
    seqs: int
    tokens: int
    halves: bool  # whether pages want as much as states, which the user's own number of sequences overrules

    @classmethod
    def of(cls, wishes: Wishes) -> Self:
        model_len, seqs, tokens = (wish.value for wish in wishes)
        return cls(model_len, seqs, tokens, halves=not wishes.max_num_seqs.explicit)

    def slot_bytes(self, m: Measured) -> int:
        return self.seqs * m.slots_per_sequence * m.slot_bytes

    def least_pages(self, m: Measured) -> int:
        """For one sequence of full length: less would never end it.  For more, as far as states have as much."""
        one = m.pages_for(self.model_len)
        if not self.halves or not m.page_bytes:
            return one
        return max(one, min(-(-self.slot_bytes(m) // m.page_bytes), self.seqs * one))

    def cache_bytes(self, m: Measured) -> int:
        return self.slot_bytes(m) + self.least_pages(m) * m.page_bytes

    def fixed_bytes(self, m: Measured) -> int:
        """All but the caches."""
        return (
            m.process_bytes
            + m.weights_bytes
            + m.buffers_bytes
            + m.graphs_bytes
            + m.reserve_bytes
            + m.step_peak(self.tokens)
        )

    def needed_bytes(self, m: Measured) -> int:
        return self.fixed_bytes(m) + self.cache_bytes(m)

    def lacks_room(self, m: Measured) -> bool:
        """Whether the caches that the user wishes do not fit beside the rest."""
        return m.cache_wish is not None and self.fixed_bytes(m) + m.cache_wish > m.total_bytes

    def spare_bytes(self, m: Measured) -> int:
        """What more pages may take; below zero, what is missing."""
        if m.cache_wish is None:
            return m.total_bytes - self.needed_bytes(m)
        room = m.total_bytes - self.fixed_bytes(m)
        return room - m.cache_wish if self.lacks_room(m) else m.cache_wish - self.cache_bytes(m)

    def lowered(self, wishes: Wishes, m: Measured) -> Self | None:
        """The next smaller set: tokens of a step, if a fair number of them is enough; else sequences; then tokens to
        that number, and from there on tokens or the length of a sequence, whichever is more."""
        # Every running sequence needs a token of each step.
        sizes = [size for size in step_sizes(*wishes.max_num_batched_tokens) if size >= min(self.seqs, self.tokens)]
        can_shrink = self.tokens > sizes[-1]
        smaller = self._replace(tokens=sizes[sizes.index(self.tokens) + 1]) if can_shrink else self
        if self.lacks_room(m):  # fewer and shorter sequences leave the wish as large as it is
            return smaller if can_shrink else None
        can_shrink &= m.cache_wish is None  # which smaller steps would leave as small as it is
        fair = self._replace(tokens=min(size for size in sizes if size >= min(m.fair_tokens, sizes[0])))
        is_fair = can_shrink and smaller.tokens >= fair.tokens
        if is_fair and fair.spare_bytes(m) >= 0:
            return smaller
        if not wishes.max_num_seqs.explicit and self.seqs > 1:
            return self._replace(seqs=_fewer(self.seqs))
        least = max(m.page_size, self.tokens if can_shrink else 0)
        if not wishes.max_model_len.explicit and self.model_len > least and not is_fair:
            missing = -self.spare_bytes(m)
            pages = m.pages_for(self.model_len) - max(1, -(-missing // m.page_bytes) if m.page_bytes else 1)
            return self._replace(model_len=max(pages * m.page_size, least))
        return smaller if can_shrink else None

    def filled(self, wishes: Wishes, m: Measured) -> Self:
        """As long as sequences can be in what is left: their length went down in large steps."""
        if not m.page_bytes:
            return self
        pages = m.pages_for(self.model_len) + self.spare_bytes(m) // m.page_bytes
        return self._replace(model_len=max(self.model_len, min(wishes.max_model_len.value, pages * m.page_size)))


def _fewer(seqs: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., most of which are sizes that steps of answers are padded to."""
    power = 1 << (seqs - 1).bit_length() - 1
    return power + power // 2 if power + power // 2 < seqs else power


def of_use(wishes: Wishes, m: Measured) -> Measured:
    """A wish for caches is met where more would serve no sequence within the other wishes."""
    if m.cache_wish is None:
        return m
    one = m.slots_per_sequence * m.slot_bytes + m.pages_for(wishes.max_model_len.value) * m.page_bytes
    return replace(m, cache_wish=min(m.cache_wish, wishes.max_num_seqs.value * one))


def fitting(wishes: Wishes, m: Measured) -> tuple[Trial | None, Trial]:
    """The largest set that fits and honours the explicit wishes, if any does; and the last one that was tried."""
    trial: Trial | None = Trial.of(wishes)
    assert trial is not None
    last = trial
    while trial is not None and trial.spare_bytes(m) < 0:
        last = trial
        trial = trial.lowered(wishes, m)
    return (trial and trial.filled(wishes, m)), trial or last
