"""Holdings: the pages and slots that sequences hold, and what is cached of prompts that are gone."""

from collections.abc import Iterable
from itertools import chain
from math import lcm

from hotstart.cache.pool import Pool
from hotstart.cache.prefix import Match, PrefixIndex
from hotstart.engine.limits import SchedulerLimits
from hotstart.engine.pending import PendingStep
from hotstart.engine.sequence import Sequence
from hotstart.request import Request

__all__ = ["Holdings"]


class Holdings:
    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self.pages = Pool("page", limits.num_pages)
        self.slots = Pool("slot", limits.num_slots)
        # Blocks end where pages end, so that none is shared half written, and where chunks do.
        block_length = lcm(limits.page_size, limits.chunk_length)
        self.prefixes = PrefixIndex(self.pages, self.slots, limits.page_size, block_length)

    def keys_of(self, request: Request) -> tuple[bytes, ...]:
        """None for a request that wants to know something of every token of its prompt: all of it is computed."""
        params = request.params
        looks_at_prompt = params.prompt_logprobs is not None or params.repetition_penalty != 1.0
        if not self._limits.enable_prefix_caching or looks_at_prompt:
            return ()
        return self.prefixes.keys_of(request.prompt_token_ids)

    def match(self, sequence: Sequence) -> Match:
        # With one slot left, a snapshot that is read could not be evicted for the sequence's own.
        return self.prefixes.match(sequence.keys) if self.slots.num_available > 1 else Match()

    def snapshots_wanted(self, sequence: Sequence, match: Match) -> tuple[int, ...]:
        """A beginning that another prompt has too is worth one, and the prompt's end for whoever continues it."""
        ends = {match.shared, len(sequence.keys) * self.prefixes.block_length}
        return tuple(sorted(end for end in ends if end > match.length))

    def admit(self, sequence: Sequence, match: Match, spare: int) -> bool:
        """Give a sequence a slot and the pages for all its tokens, if `spare` pages are left then; or nothing."""
        num_new = self._limits.pages_for(len(sequence.tokens)) - len(match.pages)
        if not self.slots.num_available or self.pages.num_available < num_new + spare:
            return False
        # What is matched is held before anything is evicted for the rest.
        shared_slots = () if match.slot is None else (match.slot,)
        self.pages.share(match.pages)
        self.slots.share(shared_slots)
        if not self._make_free(self.pages, num_new + spare) or not self._make_free(self.slots, 1):
            self.pages.release(match.pages)
            self.slots.release(shared_slots)
            return False
        (slot,) = self.slots.take(1)
        sequence.settle(match.length, match.pages + self.pages.take(num_new), slot, match.slot)
        return True

    def grow(self, sequence: Sequence) -> bool:
        """One more page for a sequence, if there is one."""
        if not self._make_free(self.pages, 1):
            return False
        sequence.pages += self.pages.take(1)
        return True

    def pack(self, sequence: Sequence, limit: int) -> None:
        """Give a sequence a slot below the limit, if one is free: its next span brings its state there.

        The step returns the slot that it reads.  A sequence whose tokens are counted by slot stays where it is.
        """
        if sequence.penalties is None and sequence.state_slot == sequence.slot:
            slot = self.slots.take_below(limit)
            sequence.slot = sequence.slot if slot is None else slot

    def slot_for_snapshot(self) -> int | None:
        return self.slots.take(1)[0] if self._make_free(self.slots, 1) else None

    def land(self, step: PendingStep) -> None:
        """Drop the references of a step that has ended, well or not."""
        self.slots.release(step.reads)

    def keep_snapshots(self, step: PendingStep) -> None:
        """Make the snapshots of a step that went well known to later prompts."""
        for sequence, span in step.snapshots:
            if not sequence.is_broken:
                num_blocks = (span.start + span.length) // self.prefixes.block_length
                self.prefixes.insert(sequence.keys[:num_blocks], sequence.pages, span.write_slot)

    def give_back(self, sequence: Sequence) -> None:
        """No step in flight writes the sequence's pages and slot any more."""
        self.pages.release(sequence.pages)
        self.slots.release(sequence.held_slots)
        sequence.rewind()

    def check(self, holders: Iterable[Sequence], pending: Iterable[PendingStep]) -> None:
        """Assert that every reference has its holder, and every page and slot its place."""
        holders = tuple(holders)
        self.pages.check(chain.from_iterable(s.pages for s in holders), self.prefixes.kept_pages())
        slots = chain.from_iterable(s.held_slots for s in holders)
        reads = chain.from_iterable(step.reads for step in pending)
        self.slots.check(chain(slots, reads), self.prefixes.kept_slots())

    def _make_free(self, pool: Pool, count: int) -> bool:
        """See to it that the pool has `count` free ids, if need be from what is cached."""
        if pool.num_free < count <= pool.num_available:
            self.prefixes.evict(pool, count)
        return pool.num_free >= count
