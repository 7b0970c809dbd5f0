"""solve(): limits, pages and slots that fit, from what was measured and what is wished.

Pages and slots are solved for together.  A default that is too large is lowered, and the plan says so; an explicit
wish that cannot be met is an InsufficientMemory with the numbers and the flag to change.
"""

from hotstart.engine.memory import Measured, MemoryPlan, Wishes, as_size
from hotstart.engine.refusal import refusal
from hotstart.engine.trial import Trial, fitting, of_use
from hotstart.errors import InsufficientMemory

__all__ = ["fits", "solve"]


def fits(wishes: Wishes, measured: Measured, num_tokens: int) -> bool:
    """Whether steps of so many tokens leave room for the other wishes as they are."""
    trial = Trial.of(wishes)._replace(tokens=num_tokens)
    return trial.spare_bytes(of_use(wishes, measured)) >= 0


def solve(wishes: Wishes, measured: Measured) -> MemoryPlan:
    """Raises InsufficientMemory if no set of limits that honours the explicit wishes fits."""
    measured = of_use(wishes, measured)
    trial, smallest = fitting(wishes, measured)
    if trial is None:
        raise InsufficientMemory(refusal(smallest, wishes, measured))
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


def _notes(trial: Trial, wishes: Wishes, m: Measured) -> tuple[str, ...]:
    within = f"which fits {as_size(m.total_bytes)} ({m.total_source})"
    caches = within if m.cache_wish is None else f"which fits {as_size(m.cache_wish)} (--kv-cache-memory-bytes)"
    reasons = {"--max-model-len": caches, "--max-num-seqs": caches, "--max-num-batched-tokens": within}
    if trial._replace(seqs=trial.seqs + 1, halves=False).spare_bytes(m) >= 0:
        reasons["--max-num-seqs"] += " and gives states no more than pages"
    return tuple(
        f"{flag} from its default {wish.value} to {found}, {reasons[flag]}"
        for (flag, wish), found in zip(wishes.by_flag().items(), trial[:3], strict=True)
        if wish.value != found
    )
