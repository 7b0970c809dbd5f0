"""refusal(): why no set of limits fits, in numbers, and which flag to change to what."""

import math
from bisect import bisect_left
from dataclasses import replace

from hotstart.engine.memory import MAX_RESERVE_BYTES, RESERVE_SHARE, Measured, Wish, Wishes, as_count, as_size
from hotstart.engine.trial import Trial, fitting, of_use

__all__ = ["refusal"]

MIB = 1 << 20


def refusal(trial: Trial, wishes: Wishes, m: Measured) -> str:
    """`trial`: the smallest set of limits that honours the explicit wishes.  Each of the remedies is enough alone."""
    remedies = [f"lower {name}" for name in _smaller(wishes, m)]
    caches = {
        as_count(trial.seqs * m.slots_per_sequence, "state slot"): trial.slot_bytes(m),
        f"pages for {as_count(trial.model_len, 'token')}": m.pages_for(trial.model_len) * m.page_bytes,
    }
    if trial.lacks_room(m):
        assert m.cache_wish is not None
        caches = {"caches": m.cache_wish}
        room = (m.total_bytes - trial.fixed_bytes(m)) // MIB
        if room > 0 and _fits(wishes, replace(m, cache_wish=room * MIB)):
            remedies.append(f"lower --kv-cache-memory-bytes to {room}MiB")
    elif m.cache_wish is not None:
        remedies.append(f"raise --kv-cache-memory-bytes to {trial.cache_bytes(m) // MIB + 1}MiB")
        head = f"--kv-cache-memory-bytes is {as_size(m.cache_wish)}, {as_size(trial.cache_bytes(m))} are needed"
        return f"{head}: {_listed(caches)}; {', or '.join(remedies)}"
    parts = {
        "process": m.process_bytes,
        "weights": m.weights_bytes,
        "buffers": m.buffers_bytes,
        f"a step of {as_count(trial.tokens, 'token')}": m.step_peak(trial.tokens),
        "graphs": m.graphs_bytes,
        "reserve": m.reserve_bytes,
        **caches,
    }
    needed = sum(parts.values())
    least = "at least " if m.is_least else ""
    head = f"{least}{as_size(needed)} are needed and {as_size(m.total_bytes)} may be taken ({m.total_source})"
    return f"{head}: {_listed(parts)}; {', or '.join([*remedies, _larger(needed, m)])}"


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {as_size(num_bytes)}" for name, num_bytes in parts.items() if num_bytes)


def _smaller(wishes: Wishes, m: Measured) -> list[str]:
    """Of the explicit wishes those that make room, with the largest value that does, as far as that is known."""
    found = []
    for (flag, (value, explicit)), field in zip(wishes.by_flag().items(), wishes._fields, strict=True):
        if not explicit:
            continue
        # Rather as many sequences as can have the length that they have now: a default would give way to them.
        pinned = wishes._replace(max_model_len=wishes.max_model_len._replace(explicit=True))
        if enough := _largest(field, value, pinned, m) or _largest(field, value, wishes, m):
            found.append(f"{flag} to {enough}")
        elif _largest(field, value, wishes, _lighter(field, m)):
            found.append(flag)
    return found


def _lighter(field: str, m: Measured) -> Measured:
    """Without what less of a wish might save, which nobody has measured."""
    if field == "max_num_batched_tokens":
        return replace(m, step_peaks=tuple((size, 0) for size, _ in m.step_peaks))
    return replace(m, buffers_bytes=0) if field == "max_num_seqs" else m


def _largest(field: str, value: int, wishes: Wishes, m: Measured) -> int:
    """Below `value`, of what fits; 0 if nothing does."""
    smaller = range(1, value)
    return bisect_left(smaller, True, key=lambda one: not _fits(wishes._replace(**{field: Wish(one, True)}), m))


def _fits(wishes: Wishes, m: Measured) -> bool:
    return fitting(wishes, of_use(wishes, m))[0] is not None


def _larger(needed: int, m: Measured) -> str:
    """What of the total has to change."""
    bare = needed - m.reserve_bytes
    enough = bare + min(int(bare / (1 - RESERVE_SHARE)) - bare, MAX_RESERVE_BYTES)
    if m.wished_reserve is not None:
        enough = needed
    enough = (enough // MIB + 1) * MIB
    if not m.total_flag or (m.card_bytes is not None and enough > m.card_bytes):
        return f"take a GPU with {as_size(enough)}"
    if m.total_share is None:
        return f"raise {m.total_flag} to {enough // MIB}MiB"
    share = math.ceil(100 * m.total_share * enough / m.total_bytes) / 100
    return f"raise {m.total_flag} to {share:g}" if share <= 1 else f"raise {m.total_flag} and --device-memory-bytes"
