"""MemoryPlan: where every byte goes.  What was measured is given, what is chosen is solved for (solve.py), and the
sum is shown.
"""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Measured", "MemoryPlan", "PlanLine", "Wish", "Wishes", "as_count", "as_size"]

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

    def by_flag(self) -> dict[str, Wish]:
        return {"--" + name.replace("_", "-"): wish for name, wish in self._asdict().items()}


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
    total_share: float | None = None  # where the flag is a share, what it is
    card_bytes: int | None = None  # more than that there is not, whatever the flag
    fair_tokens: int = FEWEST_TOKENS  # of a step: a default is not lowered below while sequences can give way
    is_least: bool = False  # nothing has been loaded yet: it will be no less
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
                f"worst step of up to {as_count(self.max_num_batched_tokens, 'token')}, "
                f"{as_count(self.max_num_seqs, 'sequence')}",
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

    @property
    def limits(self) -> str:
        return (
            f"{as_count(self.max_num_seqs, 'sequence')}, {as_count(self.max_model_len, 'token')} a sequence, "
            f"{as_count(self.max_num_batched_tokens, 'token')} a step"
        )

    def explain(self) -> str:
        """A table of the lines above their sum, then the limits that follow, then what was lowered."""
        rows = [(line.name, line.origin, f"{line.num_bytes:,}", line.detail) for line in self.lines]
        total = ("total", "", f"{self.total_bytes:,}", self.measured.total_source)
        widths = [max(len(row[i]) for row in (*rows, total)) for i in range(3)]

        def line(name: str, origin: str, number: str, detail: str) -> str:
            return f"{name:<{widths[0]}}  {origin:<{widths[1]}}  {number:>{widths[2]}}  {detail}".rstrip()

        limits = (
            f"limits: {self.limits}; pages for {as_count(self.num_pages * self.measured.page_size, 'token')} in all"
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


def as_count(number: int, noun: str) -> str:
    """1 -> "1 page"; 2 -> "2 pages"."""
    return f"{number} {noun}" + "s" * (number != 1)


def as_size(num_bytes: int) -> str:
    """1536 -> "1.5 KiB"."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"
