"""solve(): limits, pages and slots that fit, from what was measured and what is wished.

Pages and slots are solved for together.  A default that is too large is lowered, and the plan says so; an explicit
wish that cannot be met is an InsufficientMemory with the numbers and the flag to change.

How many sequences may run, where nobody says it, is a question of what their states take from the pages.  With a share
s of the caches for states, at least min(s, 1 - s) as many run at once as in the division that is best for their length,
whatever that is.  So a default gives way until states take at most half; it goes down by a third or a quarter, and s is
at least 1/3 then.
"""

from dataclasses import replace
from typing import NamedTuple, Self

from hotstart.engine.memory import (
    FEWEST_TOKENS,
    MAX_RESERVE_BYTES,
    RESERVE_SHARE,
    Measured,
    MemoryPlan,
    Wish,
    Wishes,
    as_size,
)
from hotstart.errors import InsufficientMemory

__all__ = ["fits", "solve", "step_sizes"]


def step_sizes(limit: int, explicit: bool) -> tuple[int, ...]:
    """Tokens of a step that the plan may choose, largest first: their peaks have to be known."""
    sizes = [limit]
    while not explicit and sizes[-1] > FEWEST_TOKENS:
        sizes.append(max(sizes[-1] // 2, FEWEST_TOKENS))
    return tuple(sizes)


class _Trial(NamedTuple):
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
        """The next smaller set: tokens of a step, if a fair number of them is enough; else sequences; then tokens
        whatever they are; then the length of a sequence."""
        sizes = step_sizes(*wishes.max_num_batched_tokens)
        lacks_cache = m.cache_wish is not None and self.cache_bytes(m) > m.cache_wish
        can_shrink = self.tokens > sizes[-1] and not lacks_cache
        smaller = self._replace(tokens=sizes[sizes.index(self.tokens) + 1]) if can_shrink else self
        if self.lacks_room(m):  # fewer and shorter sequences leave the wish as large as it is
            return smaller if can_shrink else None
        fair = self._replace(tokens=min(size for size in sizes if size >= min(m.fair_tokens, sizes[0])))
        if can_shrink and smaller.tokens >= fair.tokens and fair.spare_bytes(m) >= 0:
            return smaller
        if not wishes.max_num_seqs.explicit and self.seqs > 1:
            return self._replace(seqs=_fewer(self.seqs))
        if can_shrink:
            return smaller
        if not wishes.max_model_len.explicit and self.model_len > m.page_size:
            missing = -self.spare_bytes(m)
            pages = m.pages_for(self.model_len) - max(1, -(-missing // m.page_bytes) if m.page_bytes else 1)
            return self._replace(model_len=max(pages, 1) * m.page_size)
        return None


def _fewer(seqs: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., most of which are sizes that steps of answers are padded to."""
    power = 1 << (seqs - 1).bit_length() - 1
    return power + power // 2 if power + power // 2 < seqs else power


def fits(wishes: Wishes, measured: Measured, num_tokens: int) -> bool:
    """Whether steps of so many tokens leave room for the other wishes as they are."""
    trial = _Trial.of(wishes)._replace(tokens=num_tokens)
    return trial.spare_bytes(_of_use(wishes, measured)) >= 0


def _of_use(wishes: Wishes, m: Measured) -> Measured:
    """A wish for caches is met where more would serve no sequence within the other wishes."""
    if m.cache_wish is None:
        return m
    one = m.slots_per_sequence * m.slot_bytes + m.pages_for(wishes.max_model_len.value) * m.page_bytes
    return replace(m, cache_wish=min(m.cache_wish, wishes.max_num_seqs.value * one))


def solve(wishes: Wishes, measured: Measured) -> MemoryPlan:
    """Raises InsufficientMemory if no set of limits that honours the explicit wishes fits."""
    trial: _Trial | None = _Trial.of(wishes)
    assert trial is not None
    measured = _of_use(wishes, measured)
    smallest = trial
    while trial is not None and trial.spare_bytes(measured) < 0:
        smallest = trial
        trial = trial.lowered(wishes, measured)
    if trial is None:
        raise InsufficientMemory(_refusal(smallest, wishes, measured))
    left, least = trial.spare_bytes(measured), trial.least_pages(measured)
    most = trial.seqs * measured.pages_for(trial.model_len)
    more = left // measured.page_bytes if measured.page_bytes else most
    return MemoryPlan(
        measured=measured,
        max_model_len=trial.model_len,
        max_num_seqs=trial.seqs,
        max_num_batched_tokens=trial.tokens,
        num_pages=min(least + more, most),
        num_slots=trial.seqs * measured.slots_per_sequence,
        notes=_notes(trial, wishes, measured),
    )


def _flags(wishes: Wishes) -> dict[str, Wish]:
    return {"--" + name.replace("_", "-"): wish for name, wish in wishes._asdict().items()}


def _notes(trial: _Trial, wishes: Wishes, m: Measured) -> tuple[str, ...]:
    reason = f"which fits {as_size(m.total_bytes)} ({m.total_source})"
    reasons = dict.fromkeys(_flags(wishes), reason)
    if trial.slot_bytes(m) <= trial.least_pages(m) * m.page_bytes:
        reasons["--max-num-seqs"] = f"{reason} and gives states no more than pages"
    return tuple(
        f"{flag} from its default {wish.value} to {found}, {reasons[flag]}"
        for (flag, wish), found in zip(_flags(wishes).items(), trial[:3], strict=True)
        if wish.value != found
    )


def _refusal(trial: _Trial, wishes: Wishes, m: Measured) -> str:
    explicit = [f"{flag} {wish.value}" for flag, wish in _flags(wishes).items() if wish.explicit]
    lacks_room = trial.lacks_room(m)
    needed = trial.fixed_bytes(m) + (m.cache_wish or 0) if lacks_room else trial.needed_bytes(m)
    caches = (
        f"{trial.seqs * m.slots_per_sequence} state slots {as_size(trial.seqs * m.slots_per_sequence * m.slot_bytes)}, "
        f"pages for one sequence of {trial.model_len} tokens {as_size(m.pages_for(trial.model_len) * m.page_bytes)}"
    )
    if lacks_room:
        caches = f"caches {as_size(m.cache_wish or 0)}"
    numbers = (
        f"{as_size(needed)} are needed: process {as_size(m.process_bytes)}, weights {as_size(m.weights_bytes)}, "
        f"buffers {as_size(m.buffers_bytes)}, a step of {trial.tokens} tokens {as_size(m.step_peak(trial.tokens))}, "
        f"reserve {as_size(m.reserve_bytes)}, graphs {as_size(m.graphs_bytes)}, {caches}; "
        f"{as_size(m.total_bytes)} may be taken ({m.total_source})"
    )
    bare = needed - m.reserve_bytes
    enough = bare + min(int(bare / (1 - RESERVE_SHARE)) - bare, MAX_RESERVE_BYTES)
    if m.wished_reserve is not None:
        enough = needed
    remedy = f"{f'raise {m.total_flag} to' if m.total_flag else 'take a GPU of'} {enough // 2**20 + 1}MiB"
    if lacks_room:
        room = m.total_bytes - trial.fixed_bytes(m)
        length, seqs = (wish.value if wish.explicit else 1 for wish in wishes[:2])
        enough_for_one = trial._replace(model_len=length, seqs=seqs).cache_bytes(m) <= room
        explicit = [f"--kv-cache-memory-bytes to {room // 2**20}MiB"] if enough_for_one else []
    elif needed <= m.total_bytes:
        remedy = f"raise --kv-cache-memory-bytes to {trial.cache_bytes(m) // 2**20 + 1}MiB"
    return f"{numbers}; " + (f"lower {' or '.join(explicit)}, or {remedy}" if explicit else remedy)
