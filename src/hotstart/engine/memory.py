"""MemoryPlan: where every byte goes.  What was measured is given, what is chosen is solved for, and the sum is shown.

Pages and slots are solved for together.  A default that is too large is lowered, and the plan says so; an explicit
wish that cannot be met is an InsufficientMemory with the numbers and the flag to change.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from hotstart.errors import InsufficientMemory

__all__ = ["Measured", "MemoryPlan", "PlanLine", "Wish", "Wishes", "as_size", "fits", "solve", "step_sizes"]

RESERVE_SHARE = 1 / 32  # of the total, for what no meter sees: scratch inside operators, fragments, the host's own data
MAX_RESERVE_BYTES = 256 * 2**20
FEWEST_TOKENS = 64  # below this many tokens a step, a default is lowered elsewhere first


class Wish(NamedTuple):
    value: int
    explicit: bool  # the user's own: it must not be lowered


class Wishes(NamedTuple):
    max_model_len: Wish
    max_num_seqs: Wish
    max_num_batched_tokens: Wish


@dataclass(frozen=True, slots=True)
class Measured:
    """What start-up found out before it sized the caches."""

    total_bytes: int  # what the engine may take
    total_source: str  # where that number comes from
    process_bytes: int  # taken beside the arena: the interpreter and libraries, or other processes on a GPU
    weights_bytes: int
    buffers_bytes: int  # staging and sampling
    step_peaks: tuple[tuple[int, int], ...]  # (tokens, bytes of the worst step of so many), ascending
    page_size: int
    page_bytes: int
    slot_bytes: int
    graphs_bytes: int = 0  # a bound on what captured steps will take
    cache_wish: int | None = None  # the user's bytes of pages and slots together: no more, and no less if of use
    wished_reserve: int | None = None
    slots_per_sequence: int = 1  # 2 where as many snapshots of prompts may be kept
    process_detail: str = "interpreter and libraries"
    total_flag: str = "--cpu-memory"  # what raises total_bytes, "" if nothing does
    fair_tokens: int = FEWEST_TOKENS  # of a step: a default is not lowered below while sequences can give way
    tuning_bytes: int = 0  # scratch of tuning: held before the caches were sized, and free again

    @property
    def reserve_bytes(self) -> int:
        if self.wished_reserve is not None:
            return self.wished_reserve
        return min(int(self.total_bytes * RESERVE_SHARE), MAX_RESERVE_BYTES)

    def step_peak(self, num_tokens: int) -> int:
        """Of the smallest step measured that is as large."""
        return next(num_bytes for rung, num_bytes in self.step_peaks if rung >= num_tokens)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)


def step_sizes(limit: int, explicit: bool) -> tuple[int, ...]:
    """Tokens of a step that the plan may choose, largest first: their peaks have to be known."""
    sizes = [limit]
    while not explicit and sizes[-1] > FEWEST_TOKENS:
        sizes.append(max(sizes[-1] // 2, FEWEST_TOKENS))
    return tuple(sizes)


class PlanLine(NamedTuple):
    name: str
    origin: str  # "measured" or "chosen"
    num_bytes: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    measured: Measured
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_pages: int
    num_slots: int
    notes: tuple[str, ...]  # what was lowered, and why

    @property
    def total_bytes(self) -> int:
        return self.measured.total_bytes

    @property
    def lines(self) -> tuple[PlanLine, ...]:
        """Their bytes add up to `total_bytes`."""
        m = self.measured
        used = (
            PlanLine("process", "measured", m.process_bytes, m.process_detail),
            PlanLine("weights", "measured", m.weights_bytes),
            PlanLine("buffers", "measured", m.buffers_bytes, "staging and sampling"),
            PlanLine(
                "step peak",
                "measured",
                m.step_peak(self.max_num_batched_tokens),
                f"worst step of up to {self.max_num_batched_tokens} tokens, {self.max_num_seqs} sequences",
            ),
            *[PlanLine("graphs", "measured", m.graphs_bytes, "captured steps, a bound from a trial")]
            * bool(m.graphs_bytes),
            PlanLine("reserve", "chosen", m.reserve_bytes, "for what no meter sees"),
            PlanLine(
                "state slots",
                "chosen",
                self.num_slots * m.slot_bytes,
                f"{self.num_slots} x {as_size(m.slot_bytes)}, "
                + ("one for each running sequence" if m.slots_per_sequence == 1 else "half of them for snapshots"),
            ),
            PlanLine(
                "cache pages",
                "chosen",
                self.num_pages * m.page_bytes,
                f"{self.num_pages} x {as_size(m.page_bytes)} of {m.page_size} tokens",
            ),
        )
        rest = m.total_bytes - sum(line.num_bytes for line in used)
        return (*used, PlanLine("unused", "chosen", rest, "more would serve no sequence within the limits"))

    def explain(self) -> str:
        """A table of the lines above their sum, then the limits that follow, then what was lowered."""
        rows = [(line.name, line.origin, f"{line.num_bytes:,}", line.detail) for line in self.lines]
        total = ("total", "", f"{self.total_bytes:,}", self.measured.total_source)
        widths = [max(len(row[i]) for row in (*rows, total)) for i in range(3)]

        def line(name: str, origin: str, number: str, detail: str) -> str:
            return f"{name:<{widths[0]}}  {origin:<{widths[1]}}  {number:>{widths[2]}}  {detail}".rstrip()

        limits = (
            f"limits: {self.max_num_seqs} sequences, {self.max_model_len} tokens a sequence, "
            f"{self.max_num_batched_tokens} tokens a step"
        )
        ruler = "-" * (sum(widths) + 4)
        return "\n".join(
            [line("memory", "", "bytes", ""), *(line(*row) for row in rows), ruler, line(*total), limits]
            + [f"lowered: {note}" for note in self.notes]
            + [f"tuning held {as_size(self.measured.tuning_bytes)} before this, all free again"]
            * bool(self.measured.tuning_bytes)
        )

    def as_dict(self) -> dict[str, object]:
        """The plan as JSON has it."""
        names = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_pages", "num_slots")
        return {
            "total_bytes": self.total_bytes,
            "total_source": self.measured.total_source,
            "lines": [line._asdict() for line in self.lines],
            **{name: getattr(self, name) for name in names},
            "page_size": self.measured.page_size,
            "page_bytes": self.measured.page_bytes,
            "slot_bytes": self.measured.slot_bytes,
            "tuning_bytes": self.measured.tuning_bytes,
            "notes": list(self.notes),
        }


def as_size(num_bytes: int) -> str:
    """1536 -> "1.5 KiB"."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"


class _Trial(NamedTuple):
    """One set of limits, while a set that fits is looked for."""

    model_len: int
    seqs: int
    tokens: int

    def cache_bytes(self, m: Measured) -> int:
        """With pages for one sequence of full length: less would never end it."""
        return self.seqs * m.slots_per_sequence * m.slot_bytes + m.pages_for(self.model_len) * m.page_bytes

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
        """The next smaller set: tokens of a step to a fair number, sequences, more tokens, the length of a sequence."""
        sizes = step_sizes(*wishes.max_num_batched_tokens)
        lacks_cache = m.cache_wish is not None and self.cache_bytes(m) > m.cache_wish
        can_shrink = self.tokens > sizes[-1] and not lacks_cache
        smaller = self._replace(tokens=sizes[sizes.index(self.tokens) + 1]) if can_shrink else self
        if self.lacks_room(m):  # fewer and shorter sequences leave the wish as large as it is
            return smaller if can_shrink else None
        if can_shrink and smaller.tokens >= m.fair_tokens:
            return smaller
        if not wishes.max_num_seqs.explicit and self.seqs > 1:
            return self._replace(seqs=self.seqs // 2)
        if can_shrink:
            return smaller
        if not wishes.max_model_len.explicit and self.model_len > m.page_size:
            missing = -self.spare_bytes(m)
            pages = m.pages_for(self.model_len) - max(1, -(-missing // m.page_bytes) if m.page_bytes else 1)
            return self._replace(model_len=max(pages, 1) * m.page_size)
        return None


def fits(wishes: Wishes, measured: Measured, num_tokens: int) -> bool:
    """Whether steps of so many tokens leave room for the other wishes as they are."""
    trial = _Trial(wishes.max_model_len.value, wishes.max_num_seqs.value, num_tokens)
    return trial.spare_bytes(_of_use(wishes, measured)) >= 0


def _of_use(wishes: Wishes, m: Measured) -> Measured:
    """A wish for caches is met where more would serve no sequence within the other wishes."""
    if m.cache_wish is None:
        return m
    one = m.slots_per_sequence * m.slot_bytes + m.pages_for(wishes.max_model_len.value) * m.page_bytes
    return replace(m, cache_wish=min(m.cache_wish, wishes.max_num_seqs.value * one))


def solve(wishes: Wishes, measured: Measured) -> MemoryPlan:
    """Raises InsufficientMemory if no set of limits that honours the explicit wishes fits."""
    trial: _Trial | None = _Trial(*(wish.value for wish in wishes))
    assert trial is not None
    measured = _of_use(wishes, measured)
    smallest = trial
    while trial is not None and trial.spare_bytes(measured) < 0:
        smallest = trial
        trial = trial.lowered(wishes, measured)
    if trial is None:
        raise InsufficientMemory(_refusal(smallest, wishes, measured))
    left = trial.spare_bytes(measured)
    one = measured.pages_for(trial.model_len)
    more = left // measured.page_bytes if measured.page_bytes else (trial.seqs - 1) * one
    return MemoryPlan(
        measured=measured,
        max_model_len=trial.model_len,
        max_num_seqs=trial.seqs,
        max_num_batched_tokens=trial.tokens,
        num_pages=min(one + more, trial.seqs * one),
        num_slots=trial.seqs * measured.slots_per_sequence,
        notes=_notes(trial, wishes, measured),
    )


def _flags(wishes: Wishes) -> dict[str, Wish]:
    return {"--" + name.replace("_", "-"): wish for name, wish in wishes._asdict().items()}


def _notes(trial: _Trial, wishes: Wishes, m: Measured) -> tuple[str, ...]:
    return tuple(
        f"{flag} from its default {wish.value} to {found}, which fits {as_size(m.total_bytes)} ({m.total_source})"
        for (flag, wish), found in zip(_flags(wishes).items(), trial, strict=True)
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
